"""What a stage reads is hashed first, against the manifest of the result it belongs to.

A flipped bit, two swapped checkpoints or an edited question then stop the stage with a sentence, instead of being
computed on. sha256 reads 1 to 2 GB/s a core; the bytes are in the file cache when the stage reads them again, so that
a 14.6 GB checkpoint costs some ten seconds on top of its load. A file is hashed once by a process.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from scalpel.artifact.files import MANIFEST, RECIPE, read_json
from scalpel.artifact.identity import sha256_file
from scalpel.errors import UserError

CHECKED = "SCALPEL_CHECKED"  # set by a launcher for its children, when it has checked what they read
DEPTH = 4  # folders that a file may lie below its result


def checked(path: Path) -> Path:
    """`path`, if it is as the manifest of its result says; UserError otherwise. A file of no result is let pass."""
    if not os.environ.get(CHECKED):
        result = result_of(path)
        if result is not None:
            _check(result, path)
    return path


def checked_folder(directory: Path) -> Path:
    """`directory`, if all files below it are as their result's manifest says, and none that it lists is missing."""
    result = None if os.environ.get(CHECKED) else result_of(directory / "any")
    if result is not None:
        below = directory.resolve().relative_to(result.resolve()).as_posix()
        lead = "" if below == "." else f"{below}/"
        for name in _listed(result, (result / MANIFEST).stat().st_mtime_ns):
            if name.startswith(lead):
                _check(result, result / name)
    return directory


def result_of(path: Path) -> Path | None:
    """The directory of the finished result that a file belongs to; None when it belongs to none."""
    for parent in list(Path(path).parents)[:DEPTH]:
        if (parent / MANIFEST).is_file() and (parent / RECIPE).is_file():
            return parent
    return None


def _check(result: Path, path: Path) -> None:
    name = path.resolve().relative_to(result.resolve()).as_posix() if not path.is_symlink() else _name(result, path)
    listed = _listed(result, (result / MANIFEST).stat().st_mtime_ns)
    again = f"`make verify` names all that is damaged; move {result} aside and run snakemake to make it again."
    if not path.is_file():
        raise UserError(f"{path} is missing; {again}")
    if name not in listed:
        raise UserError(f"{path} is not listed in the manifest of {result}; {again}")
    try:
        stat = path.stat()
        same = stat.st_size == listed[name]["bytes"] and _sha256(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {again}") from None
    if same != listed[name]["sha256"]:
        raise UserError(f"{path} is not what its manifest says: it is damaged or was edited; {again}")


def _name(result: Path, path: Path) -> str:
    return (path.parent.resolve() / path.name).relative_to(result.resolve()).as_posix()


@lru_cache(maxsize=256)
def _listed(result: Path, _changed: int) -> dict[str, dict]:
    """The files of a manifest; read again when it changed."""
    files = read_json(result / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise UserError(f"{result / MANIFEST} lists no files; move {result} aside and run snakemake again.")
    return files


@lru_cache(maxsize=4096)
def _sha256(path: Path, *_stat: int) -> str:
    return sha256_file(path)
