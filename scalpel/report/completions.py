"""Completions of several runs to the same questions, at their first, middle and last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalpel.artifact.checking import checked
from scalpel.config.types import BASE
from scalpel.errors import UserError
from scalpel.exhibits.result import Result
from scalpel.exhibits.results import Results, task_name

if TYPE_CHECKING:
    import pandas as pd

CHARACTERS = 1200  # of a completion and of a prompt that are shown
COLUMNS = ["step", "task", "question", "sample", "metric", "prompt", "completion", "gold", "score"]


class Written(NamedTuple):
    """What one checkpoint wrote, and its score (0 to 1). file: where it stands with all others."""

    run: str
    step: int
    text: str
    score: float
    file: Path


class Question(NamedTuple):
    """One question of a benchmark. gold: what is right, "" where nothing alone is. before: the base model's answer."""

    task: str
    prompt: str
    gold: str
    before: Written | None
    rows: list[tuple[str, list[Written]]]  # when, and each run's


def side_by_side(results: Results, runs: Sequence[str], label: Callable[[str], str] = str) -> list[Question]:
    """Of each benchmark that is answered in words the first question on which the last checkpoints differ in score, or
    its first question where there is none; of the first seed and sample."""
    steps = {run: _steps(results, run) for run in (BASE, *runs)}
    runs = [run for run in runs if steps[run]]
    found = []
    for task in dict.fromkeys(task for run in runs for task in steps[run]):
        shown = [run for run in runs if task in steps[run]]
        if not shown:
            continue
        frames = {run: _written(steps[run][task], task) for run in shown}
        if any(frame.empty for frame in frames.values()):
            continue  # answered by likelihoods of options
        last = [frames[run].query("place == 2").set_index("question")["score"] for run in shown]
        common = [q for q in last[0].index if all(q in scores for scores in last)]
        if not common:
            continue
        question = next((q for q in common if len({scores[q] for scores in last}) > 1), common[0])
        before = _written(steps[BASE][task], task) if task in steps[BASE] else None
        rows = [
            (when, [w for run in shown if (w := _at(frames[run], run, question, place, label))])
            for place, when in enumerate(("first", "middle", "last"))
        ]
        one = frames[shown[0]].query("question == @question").iloc[0]
        found.append(
            Question(
                task_name(task), _middle_out(one["prompt"], end=True), one["gold"] or "",
                None if before is None else _at(before, BASE, question, 2, label), rows,
            )
        )  # fmt: skip
    return found


def _steps(results: Results, run: str) -> dict[str, list[tuple[Result, int]]]:
    """Task -> (result, step) of the first, middle and last checkpoint of the run's first seed."""
    import pyarrow.parquet as pq

    of_run = [result for result in results.of("evaluate") if result.run == run]
    found: dict[str, list[tuple[Result, int]]] = {}
    for result in of_run:
        if result.seed == of_run[0].seed:
            table = pq.read_table(checked(result.step / "scores.parquet"), columns=["task", "step"])
            for task, step in dict.fromkeys(zip(*table.to_pydict().values(), strict=True)):
                found.setdefault(task, []).append((result, step))
    return {task: [sorted(of, key=lambda one: one[1])[i] for i in _three(len(of))] for task, of in found.items()}


def _three(count: int) -> tuple[int, int, int]:
    """Places of the first, the middle and the last of so many."""
    return 0, (count - 1) // 2, count - 1


def _written(steps: list[tuple[Result, int]], task: str) -> pd.DataFrame:
    """A task's completions at three checkpoints, `place` 0 to 2: one row a question, of the first sample and metric."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    frames = []
    for place, (result, step) in enumerate(steps):
        path = result.step / "samples.parquet"
        try:
            here = [("step", "==", step), ("task", "==", task), ("sample", "==", 0)]
            frame = pq.read_table(checked(path), columns=COLUMNS, filters=here).to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{path} cannot be read as parquet ({type(error).__name__}); run `make verify`, which says what to do."
            ) from None
        frames.append(
            frame.dropna(subset=["completion", "score"]).drop_duplicates("question").assign(place=place, file=str(path))
        )
    return pd.concat(frames, ignore_index=True).sort_values(["place", "question"], kind="stable")


def _at(frame: pd.DataFrame, run: str, question: int, place: int, label: Callable[[str], str]) -> Written | None:
    there = frame[(frame["place"] == place) & (frame["question"] == question)]
    if there.empty:
        return None
    row = there.iloc[0]
    return Written(label(run), int(row["step"]), _middle_out(row["completion"]), float(row["score"]), Path(row["file"]))


def _middle_out(text: str, end: bool = False) -> str:
    """The text, or its beginning and end; only its end where that is what was asked."""
    if len(text) <= CHARACTERS:
        return text
    half = 0 if end else CHARACTERS // 2
    left = len(text) - CHARACTERS
    return f"{text[:half]}[... {left:,} characters ...]{text[half - CHARACTERS :]}"
