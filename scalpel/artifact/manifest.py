"""manifest.json: what a finished result holds, with size and sha256 of every file; written last, and checked."""

from __future__ import annotations

import json
from pathlib import Path

from scalpel.artifact.files import FINISHED, LEASE, MANIFEST, OWN_FILES, STATE, read_json, write_atomically
from scalpel.artifact.identity import digest_of, sha256_file


def is_own(name: str) -> bool:
    """Whether a file of a result's directory is the scheme's own (recipe, manifest, leases, state) and no content."""
    own = name in OWN_FILES or name.startswith((f"{STATE}/", f"{LEASE}.", f".{LEASE}."))
    return own or is_stray(name)


def is_stray(name: str) -> bool:
    """Whether it is what a killed process left of one of the scheme's own files."""
    return any(name.startswith(f".{file}.") for file in OWN_FILES)


def contents(directory: Path) -> dict[str, dict]:
    """Size in bytes and sha256 of every file of a result, its own bookkeeping aside."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}
        for name in names
        if not is_own(name)
    }


def write_manifest(directory: Path, manifest: dict) -> None:
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def seal(directory: Path, recorded: dict, inputs: dict[str, Path]) -> None:
    """Write finished.json and then manifest.json. recorded: recipe.json's content; inputs: directories by role.

    Workflow systems delete declared outputs, manifest.json among them, before they start a job again; finished.json
    lets such a job find out in seconds that its result is there and whole.
    """
    manifest = {key: recorded[key] for key in ("stage", "name", "version", "digest", "recipe", "inputs")}
    manifest["files"] = contents(directory)
    made_of = {role: sha256_file(path / MANIFEST) for role, path in inputs.items()}
    write_atomically(directory / FINISHED, json.dumps({"manifest": manifest, "inputs": made_of}) + "\n")
    write_manifest(directory, manifest)


def restore(directory: Path, digest: str, inputs: dict[str, Path]) -> bool:
    """Write manifest.json again if the result is there and whole, made by this recipe of these very inputs.

    A result is never taken for finished because its name says so: every file is hashed. To make one again, delete
    its directory.
    """
    try:
        record = json.loads((directory / FINISHED).read_text())
        manifest, made_of = record["manifest"], record["inputs"]
        same = manifest["digest"] == digest and made_of == {
            role: sha256_file(path / MANIFEST) for role, path in inputs.items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not same or problems(directory, manifest):
        return False
    write_manifest(directory, manifest)
    return True


def problems(directory: Path, manifest: dict | None = None) -> list[str]:
    """What is wrong with a finished result: files missing, altered, truncated or not listed."""
    manifest = manifest or read_json(directory / MANIFEST)
    found = []
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        return [f"{directory / MANIFEST}: no list of files"]
    for name, expected in listed.items():
        path = directory / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size < expected["bytes"]:
            found.append(f"{path}: truncated ({path.stat().st_size} of {expected['bytes']} bytes)")
        elif path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            found.append(f"{path}: altered")
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in listed and not is_own(name):
            found.append(f"{path}: not listed in the manifest")
    try:
        expected = digest_of(
            manifest["stage"],
            manifest["version"],
            manifest["recipe"],
            {role: item["digest"] for role, item in manifest["inputs"].items()},
        )
    except (KeyError, TypeError):
        return [*found, f"{directory / MANIFEST}: recipe missing or damaged"]
    if not directory.name.endswith("-" + expected):
        found.append(f"{directory / MANIFEST}: its recipe has digest {expected}, not that of the directory")
    return found
