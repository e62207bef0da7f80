"""Intermediate weights that everything planned has read: which they are, how they go, and what is refused without them.

A run's last checkpoint stays, and with it all that other runs start from, take answers from or trace. Of the others,
the weights of a run go together, once every result that reads one of them is finished and whole and every exhibit
that shows them is current. Their files' sizes and hashes stand in the run's manifest and in retired.json.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import MANIFEST, RECIPE, RESULTS, RETIRED, below, read_json, sync
from scalpel.artifact.lease import holders, lease
from scalpel.artifact.manifest import problems
from scalpel.artifact.retired import record_retired, retired_files
from scalpel.artifact.step import Step
from scalpel.checkpoints import checkpoints
from scalpel.errors import UserError
from scalpel.plan import Plan
from scalpel.stages import STAGES

WEIGHTS = ".safetensors"
ROLES = ("checkpoints", "other")  # under which more than the last checkpoint is read


class Retirable(NamedTuple):
    """A finished run with intermediate weights. files: those still there, by name; why: what they are kept for."""

    directory: Path
    files: dict[str, dict]
    why: str | None

    @property
    def weight(self) -> int:
        """Bytes."""
        return sum(item["bytes"] for item in self.files.values())


# ---------------------------------------------------------------- what may go


def retirable(plan: Plan) -> Iterator[Retirable]:
    """Every finished trained run of the plan that has intermediate weights."""
    busy = _busy(plan.root)
    for step in plan.steps.values():
        directory = plan.root / step.directory
        if step.stage == "train" and step.finished(plan.root):
            files = {name: item for name, item in intermediate(directory).items() if (directory / name).is_file()}
            if files:
                yield Retirable(directory, files, _kept_for(plan, step, busy))


def intermediate(run: Path) -> dict[str, dict]:
    """Name -> size and sha256 of the weights of all checkpoints of a finished run but the last, by its manifest."""
    folders = [f"{c.path.relative_to(run).as_posix()}/" for c in checkpoints(run)[:-1]]
    listed = read_json(run / MANIFEST)["files"]
    return {n: item for n, item in listed.items() if n.endswith(WEIGHTS) and n.startswith(tuple(folders))}


def retire(run: Retirable) -> None:
    """Remove the files of a run that may go; retired.json is written first. Held when somebody makes the run."""
    with lease(run.directory):
        record_retired(run.directory, run.files)
        for name in run.files:
            (run.directory / name).unlink(missing_ok=True)
        for folder in {(run.directory / name).parent for name in run.files}:
            sync(folder)


def _kept_for(plan: Plan, run: Step, busy: dict[str, str]) -> str | None:
    """What still needs a run's intermediate weights; None when nothing does."""
    readers = [step for step in plan.steps.values() if _read(step.record(), run.directory, plan.root / run.directory)]
    for step in readers:
        if not step.finished(plan.root):
            return f"{step.directory} is not finished"
        if problems(plan.root / step.directory):
            return f"{step.directory} is damaged: `make repair`, then snakemake makes it again"
    if run.directory in busy:
        return f"{busy[run.directory]} is being made"
    known = {step.digest for step in (run, *readers)}
    for drawing in plan.drawings.values():
        if known & {step.digest for step in drawing.steps} and not plan.is_current(drawing):
            return f"{drawing.files[0]} is not made of what lies there"
    return None


def _busy(root: Path) -> dict[str, str]:
    """Directory of a result -> one that is being made from it now, in whatever study."""
    found: dict[str, str] = {}
    for path in root.glob(f"{RESULTS}/*/*/{RECIPE}"):
        if not (path.parent / MANIFEST).is_file() and holders(path.parent):
            made = path.parent.relative_to(root).as_posix()
            found |= {item["directory"]: made for item in read_json(path)["inputs"].values()}
    return found


def _read(recorded: dict, run: str, directory: Path) -> list[int]:
    """Indices of the intermediate checkpoints of a finished run that a step reads.

    recorded: the step's recipe.json. run: as recipes name the run's directory, which lies at `directory`.
    """
    reads = STAGES[recorded["stage"]].reads
    read_from = [recorded["inputs"][role]["directory"] for role in ROLES if role in recorded["inputs"]]
    if reads == "last" or run not in read_from:
        return []
    there = [checkpoint.index for checkpoint in checkpoints(directory)[:-1]]
    return [index for index in there if reads == "all" or index in recorded["recipe"]["checkpoints"]]


# ---------------------------------------------------------------- what is refused without them


def lost(plan: Plan, digests: Collection[str]) -> Iterator[str]:
    """A sentence for each run whose retired weights the steps with these digests would read."""
    for run in plan.steps.values():
        if run.stage == "train" and run.finished(plan.root):
            directory = plan.root / run.directory
            gone = _gone(directory)
            asked = [plan.steps[digest] for digest in digests] if gone else []
            readers = [step for step in asked if gone.intersection(_read(step.record(), run.directory, directory))]
            if readers:
                names = ", ".join(step.directory for step in readers[:3]) + (" ..." if len(readers) > 3 else "")
                yield (
                    f"{names} would read checkpoints of {run.directory} whose weights were retired; only training "
                    f"brings them back: take away what asks for them, or move {run.directory} aside and start again."
                )


def not_again(place: Path, results: Path) -> str:
    """Why a result could not be made again if it went: the run whose retired weights it reads; empty when it could."""
    try:
        recorded = read_json(place / RECIPE)
        for run in {item["directory"] for item in recorded["inputs"].values()}:
            directory = below(results, run)
            gone = _gone(directory)
            if gone and gone.intersection(_read(recorded, run, directory)):
                return f"reads retired weights of {directory}: only training that run again brings them back"
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        pass  # a damaged recipe: nobody can say
    return ""


def _gone(run: Path) -> set[int]:
    """Indices of the checkpoints of a run whose weights were retired and are not there."""
    if not (run / RETIRED).is_file():
        return set()
    missing = [name for name in retired_files(run) if not (run / name).is_file()]
    folders = {f"{c.path.relative_to(run).as_posix()}/": c.index for c in checkpoints(run)}
    return {index for folder, index in folders.items() if any(name.startswith(folder) for name in missing)}


def refuse_retired(plan: Plan, words: Collection[str] = ()) -> None:
    """UserError when what would be made reads retired weights. words: of the command line; results among them are what
    is asked for, without one it is all that is shown."""
    retired = (plan.root / step.directory / RETIRED for step in plan.steps.values() if step.stage == "train")
    if any(path.is_file() for path in retired):
        for sentence in lost(plan, plan.wanted(words)):
            raise UserError(sentence)


def summary(run: Path) -> str:
    """What was retired of a run, in words; empty when nothing was."""
    from scalpel.cost.render import size

    files = retired_files(run)
    weight = size(sum(item["bytes"] for item in files.values()))
    return f"{len(_gone(run))} checkpoints retired, {weight}: only training brings them back" if files else ""
