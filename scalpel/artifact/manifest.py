"""manifest.json: what a finished result holds, with size and sha256 of every file; written last, and checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from scalpel.artifact.files import (
    FINISHED,
    LEASE,
    MANIFEST,
    OWN_FILES,
    RECIPE,
    STATE,
    is_temporary,
    read_json,
    to_disk,
    write_atomically,
)  # fmt: skip
from scalpel.artifact.identity import canonical, digest_of, sha256_file
from scalpel.artifact.retired import retired_files, retired_problems


def is_own(name: str) -> bool:
    """Whether a file of a result's directory is the scheme's own (recipe, manifest, leases, state) and no content."""
    return name in OWN_FILES or name == STATE or name.startswith((f"{STATE}/", f"{LEASE}.")) or is_temporary(name)


def contents(directory: Path) -> dict[str, dict]:
    """Size in bytes and sha256 of every file of a result, its own bookkeeping aside."""
    return {name: measured(directory / name) for name in _content_files(directory)}


def measured(path: Path) -> dict:
    """What is recorded of a file: its size and its sha256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def content_hash(manifest: dict) -> str:
    """sha256 over names and hashes of the files that a manifest lists: equal for results that hold the same.

    Raises KeyError, TypeError or AttributeError when the manifest is damaged.
    """
    return hashlib.sha256(canonical({n: item["sha256"] for n, item in manifest["files"].items()}).encode()).hexdigest()


def content_hashes(inputs: dict[str, Path]) -> dict[str, str]:
    """`content_hash` of finished results by role."""
    return {role: content_hash(read_json(path / MANIFEST)) for role, path in inputs.items()}


def write_manifest(directory: Path, manifest: dict) -> None:
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def seal(directory: Path, recorded: dict, inputs: dict[str, Path]) -> dict:
    """Write finished.json and then manifest.json, and return it, with every file it lists on the disk before.

    recorded: recipe.json's content; inputs: directories by role, whose `content_hash` the manifest names, so that a
    result says of which bytes it was made. Workflow systems delete declared outputs, manifest.json among them, before
    they start a job again; finished.json lets such a job find out in seconds that its result is there and whole.
    """
    manifest = {key: recorded[key] for key in ("stage", "name", "version", "digest", "recipe", "inputs")}
    manifest["made_of"] = content_hashes(inputs)
    manifest["files"] = contents(directory)
    to_disk([directory / name for name in manifest["files"]])
    write_atomically(directory / FINISHED, json.dumps(manifest) + "\n")
    write_manifest(directory, manifest)
    return manifest


def restore(directory: Path, digest: str, inputs: dict[str, Path]) -> bool:
    """Write manifest.json again if the result is there and whole, made by this recipe of these very inputs.

    A result is never taken for finished because its name says so: every file is hashed. To make one again, move
    its directory aside.
    """
    try:
        manifest = json.loads((directory / FINISHED).read_text())
        same = manifest["digest"] == digest and manifest["made_of"] == content_hashes(inputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if not same or problems(directory, manifest):
        return False
    named = read_json(directory / RECIPE)["inputs"]  # where the same inputs lie now
    write_manifest(directory, manifest | {"inputs": named})
    return True


def problems(directory: Path, manifest: dict | None = None) -> list[str]:
    """What is wrong with a finished result: files missing, altered, truncated or not listed. Retired ones may be
    missing."""
    manifest = manifest or read_json(directory / MANIFEST)
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        return [f"{directory / MANIFEST}: no list of files"]
    found = retired_problems(directory, listed)
    gone = {} if found else retired_files(directory)
    there = {name: item for name, item in listed.items() if name not in gone or (directory / name).exists()}
    found += [text for name, item in there.items() if (text := difference(directory / name, item))]
    found += [
        f"{directory / name}: not listed in the manifest" for name in _content_files(directory) if name not in listed
    ]
    return found + recipe_problems(directory, manifest)


def difference(path: Path, expected: object) -> str | None:
    """How a file differs from what is recorded of it (`measured`); None when it does not."""
    try:
        size, digest = expected["bytes"], expected["sha256"]  # type: ignore[index]
        there = path.stat().st_size if path.is_file() else None
        if there is None:
            return f"{path}: missing"
        if there < size:
            return f"{path}: truncated ({there} of {size} bytes)"
        return f"{path}: altered" if there != size or sha256_file(path) != digest else None
    except (KeyError, TypeError):
        return f"{path}: its size and sha256 are not recorded"
    except OSError as error:
        return f"{path}: unreadable ({error.strerror})"


def recipe_problems(directory: Path, manifest: dict) -> list[str]:
    """What is wrong with the manifest itself: its recipe is not that of the directory's name."""
    try:
        digests = {role: item["digest"] for role, item in manifest["inputs"].items()}
        digest = digest_of(manifest["stage"], manifest["version"], manifest["recipe"], digests)
    except (KeyError, TypeError, AttributeError):
        return [f"{directory / MANIFEST}: recipe missing or damaged"]
    if not directory.name.endswith("-" + digest):
        return [f"{directory / MANIFEST}: its recipe has digest {digest}, not that of the directory"]
    return []


def _content_files(directory: Path) -> list[str]:
    """The files of a result by name, its own bookkeeping aside."""
    names = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in names if not is_own(name))
