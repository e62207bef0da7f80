"""Where a checkpoint stands on the x axis: what was spent on it, from the base model on.

The count runs over the whole chain: what a run's start had been trained, and what was spent on writing the answers it
trains on, comes before the run's own steps.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from scalpel.artifact.checking import checked, manifest_of
from scalpel.artifact.files import PROVENANCE, below, read_json
from scalpel.checkpoints import checkpoints
from scalpel.errors import UserError
from scalpel.exhibits import spent
from scalpel.exhibits.files import table
from scalpel.exhibits.result import Result

LABELS = {
    "steps": "optimizer step",
    "questions": "training questions asked",
    "tokens": "tokens trained on, read and written",
    "flops": "counted floating-point operations",
    "seconds": "seconds of optimizer steps",
}
LOGGED = {"questions": ("questions",), "tokens": ("tokens", "written"), "flops": ("flops",)}  # columns of log.parquet
SPENT = {"questions": (), "tokens": ("read_tokens", "written_tokens"), "flops": ("flops",)}  # keys of spent.json
PLACED = (
    "train",
    "given",
    "evaluate",
    "kl",
    "weight_change",
    "structure",
)  # stages whose results are about a run's own checkpoints
Place = Callable[[str, int, int], float]


def places(results: Iterable[Result], name: str) -> Place:
    """The function (run, seed, step) -> x, for the axis `name`, a key of LABELS.

    steps: optimizer steps. questions: those asked in training; writing answers asks none. tokens: every token that
    went through forward and backward, was sampled, or was read in order to sample. flops: of runs trained here counted
    sequence by sequence (scalpel/exhibits/spent.py), of others what their log says. seconds: wall time of optimizer
    steps on the machine that took them, of runs trained here (scalpel/methods/loop.py, carry_out).

    The function raises UserError naming the run that cannot be shown over this axis, and why.
    """
    of_run = {(result.run, result.seed): result for result in results if result.stage in PLACED}
    known: dict[tuple[str, int], tuple[float, list[int], list[float]]] = {}

    def place(run: str, seed: int, step: int) -> float:
        if (run, seed) not in known:
            result = of_run[run, seed]
            before = sum(_spent(directory, name, run) for directory in dict.fromkeys(result.chain))
            own = _trained(result)
            known[run, seed] = before, *(_so_far(own, name, run) if own and name != "steps" else ([], []))
        before, steps, so_far = known[run, seed]
        if name == "steps" or step == 0:
            return before + step
        if not steps or steps[-1] < step:
            raise UserError(f"{_cannot(run, name)}: its training log ends before step {step}.")
        return before + so_far[bisect.bisect_right(steps, step)]

    return place


def _trained(result: Result) -> Path | None:
    """The directory of the run whose checkpoints a result is about; None for the base model's."""
    if result.stage in ("train", "given"):
        return result.step
    inputs = manifest_of(result.step)["inputs"]
    return below(result.step.parents[1], inputs["checkpoints"]["directory"]) if "checkpoints" in inputs else None


def _spent(directory: Path, name: str, run: str) -> float:
    """What a whole earlier result took: one of stage generate, train or given."""
    if directory.parent.name == "generate":
        if name == "steps":
            return 0
        if name == "seconds":
            raise UserError(f"{_cannot(run, name)}: how long the answers it learns from took is not recorded.")
        path = checked(directory / "spent.json")
        of_answers = read_json(path)
        missing = [key for key in SPENT[name] if not isinstance(of_answers.get(key), (int, float))]
        if missing:
            raise UserError(f"{_cannot(run, name)}: {path} has no number {missing[0]!r}.")
        return sum(of_answers[key] for key in SPENT[name])
    if name == "steps":
        return checkpoints(directory)[-1].step
    return _so_far(directory, name, run)[1][-1]


def _so_far(directory: Path, name: str, run: str) -> tuple[list[int], list[float]]:
    """Logged steps of a trained or given run, in order, and what it took before the first and up to each of them."""
    if name == "seconds":
        return _timed(directory, run)
    path = directory / "log.parquet"
    if not path.is_file():
        raise UserError(f"{_cannot(run, name)}: {path} is missing.")
    if name == "flops" and directory.parent.name == "train":
        steps = spent.of_run(directory)
        return steps["step"].tolist(), [0, *steps[list(spent.KINDS)].sum(axis=1).cumsum()]
    log = table(path).sort_values("step")
    for column in LOGGED[name]:
        if column not in log:
            raise UserError(f"{_cannot(run, name)}: {path} has no column {column!r}.")
        if not (log[column] >= 0).all():
            raise UserError(f"{_cannot(run, name)}: {path} has steps without a number of {column}.")
    return log["step"].tolist(), [0, *log[list(LOGGED[name])].sum(axis=1).cumsum()]


def _timed(directory: Path, run: str) -> tuple[list[int], list[float]]:
    """As `_so_far`, of the wall time of steps."""
    path = directory / PROVENANCE
    seconds = read_json(path).get("step_seconds") if path.is_file() else None
    if not isinstance(seconds, list) or not all(isinstance(s, (int, float)) for s in seconds):
        raise UserError(f"{_cannot(run, 'seconds')}: {path} has no step_seconds; runs trained elsewhere have no clock.")
    return list(range(1, len(seconds) + 1)), list(itertools.accumulate(seconds, initial=0.0))


def _cannot(run: str, name: str) -> str:
    return f"run {run!r} cannot be shown over {name} (option x)"
