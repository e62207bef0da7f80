"""The section on single runs: what a run's recipe has other than the paper's scale, and its curves over training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalpel.exhibits import files
from scalpel.exhibits.result import Result
from scalpel.exhibits.results import LOG, Results, task_name, task_order
from scalpel.report.setup import flattened
from scalpel.report.tables import Column, Table, text_of

if TYPE_CHECKING:
    import pandas as pd

UNDRAWN = ("step", "learning_rate", "questions", "tokens", "written", "flops")  # of a log: the same for every run
POINTS = 120  # of a curve at most
WIDE, HIGH = 240, 60  # of a curve, in the units of its view box


class Curve(NamedTuple):
    """lines: of each seed, points of an SVG polyline. said: first and last value of the first seed, and the range."""

    name: str
    lines: list[str]
    said: str


class Run(NamedTuple):
    """differs: fields of the recipe that the paper's scale has otherwise; None where it has no such run. folders: of
    the trained or given checkpoints, by seed."""

    name: str
    label: str
    method: str
    seeds: list[int]
    differs: Table | None
    curves: list[Curve]
    folders: list[tuple[int, str]]


def runs(
    results: Results, described: dict[str, dict], papers: dict[str, dict], page: Path, label: Callable[[str], str] = str
) -> list[Run]:
    """Every run of the study. described, papers: recipes here and at the paper's scale. page: the page's folder."""
    scores = results.scores() if results.of("evaluate") else None
    found = []
    for name, recipe in described.items():
        mine = [result for result in results.of("train", "given") if result.run == name]
        curves = [*_logged(mine), *_scored(name, scores)]
        folders = [(result.seed, Path(os.path.relpath(result.step, page)).as_posix()) for result in mine]
        differs = _differing(recipe, papers[name]) if name in papers else None
        found.append(Run(name, label(name), recipe.get("method", "given"), recipe["seeds"], differs, curves, folders))
    return found


def _differing(here: dict, there: dict) -> Table:
    ours, theirs = flattened(here), flattened(there)
    rows = [
        (field, text_of(ours.get(field)), text_of(theirs.get(field)))
        for field in dict.fromkeys([*ours, *theirs])
        if ours.get(field) != theirs.get(field)
    ]
    return Table([Column("field"), Column("here"), Column("at the paper's scale", faint=True)], rows)


def _logged(results: list[Result]) -> list[Curve]:
    """A curve of each column of the training logs that says something."""
    logs = [files.table(result.step / LOG) for result in results if (result.step / LOG).is_file()]
    columns = dict.fromkeys(column for log in logs for column in log.columns if column not in UNDRAWN)
    return [
        curve
        for column in columns
        if (curve := _curve(column.replace("_", " "), [log[["step", column]] for log in logs if column in log]))
    ]


def _scored(run: str, scores: pd.DataFrame | None) -> list[Curve]:
    """A curve of each benchmark, in percent."""
    if scores is None:
        return []
    found = []
    mine = scores[scores["run"] == run]
    for task in task_order(mine["task"]):
        of = mine[mine["task"] == task].assign(value=100 * mine["value"])
        seeds = [frame.sort_values("step")[["step", "value"]] for _, frame in of.groupby("seed", sort=False)]
        found.append(_curve(f"{task_name(task)} (%)", seeds))
    return [curve for curve in found if curve]


def _curve(name: str, seeds: list[pd.DataFrame]) -> Curve | None:
    """Of frames of steps and values, one a seed; None without two finite values to join."""
    import numpy as np

    kept = []
    for frame in seeds:
        x, y = frame.iloc[:, 0].to_numpy(float), frame.iloc[:, 1].to_numpy(float)
        kept.append((x[np.isfinite(y)], y[np.isfinite(y)]))
    kept = [(x, y) for x, y in kept if len(x) > 1]
    if not kept:
        return None
    low, high = (pick([pick(y) for _, y in kept]) for pick in (min, max))
    first, last = (pick([pick(x) for x, _ in kept]) for pick in (min, max))
    lines = []
    for x, y in kept:
        chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
        across = (x[chosen] - first) / ((last - first) or 1) * WIDE
        up = HIGH - (y[chosen] - low) / ((high - low) or 1) * HIGH
        lines.append(" ".join(f"{a:.0f},{b:.1f}" for a, b in zip(across, up, strict=True)))
    begins, ends = (_short(kept[0][1][place]) for place in (0, -1))
    said = f"{begins} at step {text_of(int(first))}, {ends} at step {text_of(int(last))}"
    return Curve(name, lines, f"{said}; between {_short(low)} and {_short(high)}")


def _short(value: float) -> str:
    return f"{float(value):.3g}"
