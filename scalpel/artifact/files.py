"""Names of a result's own files, and reading and writing them so that no half file is ever seen."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scalpel.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
RESULTS = "results"
RECIPE, MANIFEST, PROVENANCE = "recipe.json", "manifest.json", "provenance.json"
FINISHED = "finished.json"  # the manifest once more
LEASE = "lease"  # lease.<token>.json: who makes the result now
RETIRED = "retired.json"  # which weights were removed on purpose (scalpel/artifact/retired.py)
STATE = "state"  # what a resumable stage resumes from; never part of a result
CIRCUMSTANCES = "circumstances.json"  # in state/: what the stage itself adds to provenance.json
OWN_FILES = {RECIPE, MANIFEST, PROVENANCE, FINISHED, RETIRED}
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.(\d+)@(.+)\.tmp")  # see `temporary`
DAY = 86400.0  # s after which a temporary file of another host is nobody's


def read_json(path: Path) -> dict:
    """Parsed JSON object; UserError naming the file when it is absent or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run snakemake once so that it is written.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not valid JSON (truncated?); move {path.parent} aside and run again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; move {path.parent} aside and run again.")
    return value


def results_of(path: Path, depth: int) -> Path:
    """The results directory that lies `depth` folders above a file or directory, whatever it is called.

    Links are not resolved: results/ may be one, and so may the folder of a stage.
    """
    return Path(os.path.abspath(path)).parents[depth - 1]


def below(results: Path, recorded: str) -> Path:
    """Where a path that recipes record as ``results/...`` lies, given the results directory itself."""
    return results / Path(recorded).relative_to(RESULTS)


# ---------------------------------------------------------------- writing


def temporary(path: Path) -> Path:
    """A name beside `path` for what will be moved there; it says which process of which host writes it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{os.getpid()}@{socket.gethostname()}.tmp")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write through a temporary file of the same directory, synced, so that no half file is ever seen."""
    partial = temporary(path)
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a file's content, or a directory's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not sync directories
            raise
    finally:
        os.close(handle)


def to_disk(paths: list[Path]) -> None:
    """Make sure that files, and the directories that name them, are on the disk before anything says so."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, paths))
        list(pool.map(sync, dict.fromkeys(path.parent for path in paths)))


# ---------------------------------------------------------------- what killed processes leave


def is_temporary(name: str) -> bool:
    """Whether a path is that of a temporary file of `write_atomically`."""
    return bool(TEMPORARY.fullmatch(Path(name).name))


def is_abandoned(path: Path) -> bool:
    """Whether the process that wrote a temporary file is dead, as far as this host can tell."""
    found = TEMPORARY.fullmatch(path.name)
    if not found:
        return False
    if found[2] != socket.gethostname():
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > DAY
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def sweep(directory: Path, deep: bool = False) -> None:
    """Remove the abandoned temporary files of a directory; `deep`: of all below it, too."""
    with contextlib.suppress(OSError):
        for path in directory.rglob(".*.tmp") if deep else directory.glob(".*.tmp"):
            if is_abandoned(path):
                path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all below it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
