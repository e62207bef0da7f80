"""Results that no current configuration plans: found with their sizes, and removed one whole at a time.

What any scale of workflow/scales plans with the current config.yaml counts as used, since `snakemake --profile slurm`
takes another scale than config.yaml names. Exhibits are never removed: they are small, and the last that is left of
what was.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import RECIPE, RESULTS, read_json, remove
from scalpel.artifact.lease import Held, holders, lease
from scalpel.errors import UserError
from scalpel.launch import slurm
from scalpel.plan import Plan
from scalpel.stages import STAGES

REMOVING = ".removing"  # folder of results/ that holds what is about to be deleted, and is nobody's result
DIGEST = re.compile(r"-([0-9a-f]{12})$")
QUEUED = "PENDING,RUNNING,SUSPENDED,CONFIGURING,REQUEUED,REQUEUE_HOLD,RESIZING,SIGNALING,STOPPED"


class Unused(NamedTuple):
    """A result's directory below the working directory, and the bytes it holds (linked files not counted)."""

    place: str
    bytes: int


def find(root: Path, plans: Iterable[Plan]) -> list[Unused]:
    """Results of no plan, the largest first; none that is being made or is queued, nor what such a one is made from."""
    used = {digest for plan in plans for digest in plan.steps}
    there = _directories(root)
    waiting = queued()
    busy = [digest for digest, paths in there.items() if digest in waiting or any(map(holders, paths))]
    kept = _with_inputs(busy, there)
    unused = [path for digest, paths in there.items() if digest not in used | kept for path in paths]
    found = [Unused(f"{RESULTS}/{path.parent.name}/{path.name}", size_of(path)) for path in unused]
    return sorted(found, key=lambda item: (-item.bytes, item.place))


def remove_unused(found: Iterable[Unused], root: Path) -> list[str]:
    """Remove these results; returns the places that somebody makes by now, which are left.

    A result is moved to results/.removing by one rename before anything of it is deleted, so a removal that is
    interrupted leaves whole results and none of which a part is gone; the next one deletes what it left there.
    """
    bin_, left = root / RESULTS / REMOVING, []
    with contextlib.suppress(FileNotFoundError):
        remove(bin_)
    for item in found:
        path = root / item.place
        stage_bin = bin_ / path.parent.name
        stage_bin.mkdir(parents=True, exist_ok=True)
        try:
            with lease(path):
                os.rename(path, stage_bin / path.name)
        except Held:
            left.append(item.place)
            continue
        except FileNotFoundError:  # removed by somebody else meanwhile
            continue
        except OSError as error:
            raise UserError(f"{item.place} cannot be moved to {bin_} ({error.strerror}); remove it by hand.") from None
        with contextlib.suppress(FileNotFoundError):
            remove(stage_bin / path.name)
    with contextlib.suppress(FileNotFoundError):
        remove(bin_)
    return left


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; links count as such."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def queued() -> set[str]:
    """Digests that the comments of SLURM's waiting and running jobs name; empty where there is no SLURM."""
    comments = slurm.ask("squeue", "--noheader", "--states", QUEUED, "--format", "%k")
    return set(re.findall(r"[0-9a-f]{12}", comments or ""))


# ---------------------------------------------------------------- parts


def _directories(root: Path) -> dict[str, list[Path]]:
    """Digest -> directories of results/ that hold a result, finished or not."""
    found: dict[str, list[Path]] = {}
    for stage in STAGES:
        for path in sorted((root / RESULTS / stage).glob("*-*")):
            match = DIGEST.search(path.name)
            if match and path.is_dir() and not path.is_symlink() and (path / RECIPE).is_file():
                found.setdefault(match[1], []).append(path)
    return found


def _with_inputs(digests: list[str], there: dict[str, list[Path]]) -> set[str]:
    """These results and all that they are made from or wait for."""
    found: set[str] = set()
    todo = list(digests)
    while todo:
        digest = todo.pop()
        if digest in found:
            continue
        found.add(digest)
        for path in there.get(digest, ()):
            with contextlib.suppress(UserError, OSError, KeyError, TypeError, AttributeError):
                recorded = read_json(path / RECIPE)
                todo += [item["digest"] for item in (recorded["inputs"] | recorded.get("gates", {})).values()]
    return found
