"""What an exhibit's files show, in a .json beside them: kl.json tells of kl.pdf, kl.png, kl.svg and kl.csv.

It is written last and names the digest, the hash of every file, and what each result held that was read. So whether an
exhibit is current is read from the exhibit itself, wherever it was copied to and whatever the clock says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scalpel.artifact.files import MANIFEST, below, read_json, write_atomically
from scalpel.artifact.manifest import content_hash, difference, measured
from scalpel.errors import UserError

if TYPE_CHECKING:
    from scalpel.plan.model import Drawing


def write(path: Path, content: dict, files: list[Path], shown: list[str], results: Path) -> None:
    """Write the record at `path`: content (digest, recipe, ...), the files' hashes, and those of the results `shown`.

    shown: directories of results and records of exhibits, as recipes name them, below the directory `results`.
    """
    made_of = {name: of_shown(results, name) for name in shown}
    hashes = {file.name: measured(file) for file in files}
    text = json.dumps(content | {"made_of": made_of, "files": hashes}, indent=1, ensure_ascii=False)
    write_atomically(path, text + "\n")


def of_shown(results: Path, name: str) -> str | None:
    """Content hash of a result, or of an exhibit by its record; None when it is not there or damaged."""
    path = below(results, name)
    try:
        return content_hash(read_json(path if path.suffix == ".json" else path / MANIFEST))
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None


def read(path: Path) -> dict | None:
    """The record at `path`; None when there is none, or a damaged one."""
    try:
        found = read_json(path)
    except (UserError, OSError):
        return None
    fields = {"digest": str, "recipe": dict, "made_of": dict, "files": dict}
    return found if all(isinstance(found.get(name), kind) for name, kind in fields.items()) else None


def is_current(drawing: Drawing, root: Path) -> bool:
    """Whether an exhibit's files are there, whole by their sizes, and show this drawing of results as they now lie.

    A result that was taken away since does not count: what was made of it stands.
    """
    found = read(root / drawing.record_path)
    if found is None or found["digest"] != drawing.digest:
        return False
    for name in drawing.files:
        path, item = root / name, found["files"].get(Path(name).name) or {}
        if not path.is_file() or path.stat().st_size != item.get("bytes"):
            return False
    now = {name: of_shown(root / "results", name) for name in found["made_of"]}
    return all(now[name] in (None, content) for name, content in found["made_of"].items())


def checked(path: Path, file: Path) -> Path:
    """`file`, if it is what the record at `path` says; UserError otherwise."""
    found = read(path)
    problem = difference(file, found["files"].get(file.name)) if found else f"{path}: missing or damaged"
    if problem:
        raise UserError(f"{problem}; `make repair` moves it aside, and snakemake then makes it again.")
    return file
