"""What a stage reads is hashed first: results against their manifests, source files against the recipe.

A flipped bit, two swapped checkpoints or an edited question then stop the stage with a sentence, instead of being
computed on. sha256 reads 1 to 2 GB/s a core; the bytes are in the file cache when the stage reads them again, so that
a 14.6 GB checkpoint costs some ten seconds on top of its load. A file is hashed once by a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from scalpel.artifact.files import MANIFEST, RECIPE, read_json
from scalpel.artifact.identity import sha256_file
from scalpel.artifact.manifest import is_own, recipe_problems
from scalpel.artifact.retired import retired_files
from scalpel.errors import UserError

CHECKED = "SCALPEL_CHECKED"  # set by a launcher for its children, when it has checked what they read
REMEDY = "`make verify` names all that is damaged, `make repair` moves it aside, and snakemake then makes it again."


# ---------------------------------------------------------------- files of results


def checked(path: Path) -> Path:
    """`path`, if it is as the manifest of its result says; UserError otherwise. A file of no result is let pass."""
    if not os.environ.get(CHECKED):
        result = result_of(path)
        if result is not None:
            _check(result, path)
    return path


def checked_folder(directory: Path) -> Path:
    """`directory`, if all files below it are as their result's manifest says, none missing and none added."""
    result = None if os.environ.get(CHECKED) else result_of(directory / "any")
    if result is not None:
        lead = directory.resolve().relative_to(result.resolve()).as_posix()
        lead = "" if lead == "." else f"{lead}/"
        there = {lead + path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
        for name in sorted(there | {name for name in manifest_of(result)["files"] if name.startswith(lead)}):
            if not is_own(name):
                _check(result, result / name)
    return directory


def refuse_retired(path: Path) -> None:
    """UserError for an absent file that was removed by `make retire`."""
    result = None if path.is_file() else result_of(path)
    if result is not None and path.relative_to(result).as_posix() in retired_files(result):
        raise UserError(
            f"{path} was retired; only training brings it back: move {result} aside, start snakemake again."
        )


def result_of(path: Path) -> Path | None:
    """The directory of the finished result that a file belongs to; None when it belongs to none."""
    for parent in Path(path).parents:
        if (parent / MANIFEST).is_file() and (parent / RECIPE).is_file():
            return parent
    return None


def manifest_of(result: Path) -> dict:
    """The manifest of a finished result, whose recipe is that of the directory's name; UserError otherwise."""
    return _manifest(result, (result / MANIFEST).stat().st_mtime_ns)


def _check(result: Path, path: Path) -> None:
    listed = manifest_of(result)["files"]
    name = (path.parent.resolve() / path.name).relative_to(result.resolve()).as_posix()
    refuse_retired(path)
    if not path.is_file():
        raise UserError(f"{path} is missing; {REMEDY}")
    if name not in listed:
        raise UserError(f"{path} is not listed in the manifest of {result}; {REMEDY}")
    try:
        stat = path.stat()
        same = stat.st_size == listed[name]["bytes"] and _sha256(path, *_identity(stat)) == listed[name]["sha256"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from None
    except (KeyError, TypeError):
        raise UserError(f"{result / MANIFEST} is damaged: it does not say what {name} holds; {REMEDY}") from None
    if not same:
        raise UserError(f"{path} is not what its manifest says: it is damaged or was edited; {REMEDY}")


@lru_cache(maxsize=256)
def _manifest(result: Path, _changed: int) -> dict:
    """Read again when it changed."""
    manifest = read_json(result / MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise UserError(f"{result / MANIFEST} lists no files; {REMEDY}")
    for problem in recipe_problems(result.resolve(), manifest):
        raise UserError(f"{problem}; {REMEDY}")
    return manifest


# ---------------------------------------------------------------- source files


@contextlib.contextmanager
def unchanged(expected: dict[Path, str]) -> Iterator[None]:
    """Source files that are what the plan saw, from before the block reads them until it has.

    expected: sha256 by path. Raises UserError naming the file that is another one, or is replaced in the meantime.
    """
    before = {path: _now(path) for path in expected}
    for path, digest in expected.items():
        if _sha256(path, *before[path]) != digest:
            raise UserError(_replaced(path))
    yield
    for path, digest in expected.items():
        now = _now(path)
        linked = now[:-2] == before[path][:-2] and now[-1] != before[path][-1] and _sha256(path, *now) == digest
        if now != before[path] and not linked:
            raise UserError(_replaced(path))


def _replaced(path: Path) -> str:
    return f"{path} changed since the run was planned; start snakemake again."


def _now(path: Path) -> tuple[int, ...]:
    try:
        return _identity(path.stat())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); put it back and start snakemake again.") from None


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written or replaced: both set ctime, whatever is done to mtime afterwards.

    The number of links stands last: another link to the file sets ctime, too, and is no reason to refuse it.
    """
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_nlink


@lru_cache(maxsize=4096)
def _sha256(path: Path, *_identity: int) -> str:
    return sha256_file(path)
