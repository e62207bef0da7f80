"""The section that goes through training: KL, weight change and scores of every run after each share of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from scalpel.config.types import BASE
from scalpel.exhibits.results import Results, task_name, task_order
from scalpel.report.tables import NONE, Column, Table

if TYPE_CHECKING:
    import pandas as pd

MOST = 20  # shares of a run


class Moment(NamedTuple):
    """percent: of each run's own steps."""

    percent: int
    table: Table


def course(results: Results, label: Callable[[str], str] = str) -> list[Moment]:
    """A table for each of up to MOST shares of training, in each cell the last checkpoint up to there; means over
    seeds. Empty where nothing was measured of more than one checkpoint."""
    measured = _measured(results)
    runs = [run for run in results.runs if run != BASE and any(run in of_run for of_run in measured.values())]
    ends = {run: max(max(of_run[run]) for of_run in measured.values() if run in of_run) for run in runs}
    counts = [len(of_run[run]) for of_run in measured.values() for run in runs if run in of_run]
    shares = min(MOST, max(counts, default=0))
    if shares < 2:
        return []
    columns = [Column("run"), Column("step", True), *(Column(name, True) for name in measured)]
    moments = []
    for part in range(1, shares + 1):
        rows = []
        if any(BASE in of_run for of_run in measured.values()):
            rows.append([label(BASE), "0", *(_cell(of_run.get(BASE, {}), 0) for of_run in measured.values())])
        for run in runs:
            step = ends[run] * part / shares
            cells = [_cell(of_run.get(run, {}), step * (1 + 1e-9)) for of_run in measured.values()]
            rows.append([label(run), f"{step:.0f}", *cells])
        moments.append(Moment(round(100 * part / shares), Table(columns, rows)))
    return moments


def _measured(results: Results) -> dict[str, dict[str, dict[float, str]]]:
    """What is measured -> run -> step -> as text."""
    found: dict[str, dict[str, dict[float, str]]] = {}
    from_base = results.only(lambda result: result.reference == BASE)
    if from_base.of("kl"):
        first = from_base.of("kl")[0].part
        frame = from_base.only(lambda result: result.part == first).kl()
        found["KL (nats)"] = _texts(frame, "kl", "{:.3g}")
    if from_base.of("weight_change"):
        frame = from_base.weight_change().groupby(["run", "seed", "step"])["relative"].mean().reset_index()
        found["weights (%)"] = _texts(frame.assign(relative=100 * frame["relative"]), "relative", "{:.3g}")
    if results.of("evaluate"):
        frame = results.scores()
        frame["value"] = 100 * frame["value"]
        for task in task_order(frame["task"]):
            found[f"{task_name(task)} (%)"] = _texts(frame[frame["task"] == task], "value", "{:.1f}")
    return found


def _texts(frame: pd.DataFrame, column: str, form: str) -> dict[str, dict[float, str]]:
    """Run -> step -> the mean over seeds; seeds are paired by checkpoint, steps are the first seed's."""
    found: dict[str, dict[float, str]] = {}
    frame = frame.sort_values(["run", "seed", "step"], kind="stable")
    frame["checkpoint"] = frame.groupby(["run", "seed"]).cumcount()
    for (run, _), of in frame.groupby(["run", "checkpoint"], sort=False):
        mean = of[column].mean()
        found.setdefault(run, {})[float(of["step"].iloc[0])] = form.format(mean) if mean == mean else NONE
    return found


def _cell(steps: dict[float, str], until: float) -> str:
    """Of the last step up to `until`."""
    return next((text for step, text in sorted(steps.items(), reverse=True) if step <= until), NONE)
