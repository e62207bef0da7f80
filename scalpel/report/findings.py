"""What a figure shows, in one sentence with its numbers, for those who cannot see it: its alt text.

Computed from the csv beside the figure, which holds the frame that was drawn: means over seeds at the last checkpoints,
each with the standard error that the figure has. Nothing is said to differ: that is for the claims to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scalpel.errors import UserError
from scalpel.report.tables import texts_of

if TYPE_CHECKING:
    import pandas as pd

Label = Callable[[str], str]
HIGH = ("highest", "lowest")


def finding(kind: str, csv: Path, options: dict, label: Label = str) -> str:
    """Of an exhibit of this kind, its csv file and options; "" where the kind has none, or nothing finite is shown."""
    import pandas as pd

    if kind not in KINDS:
        return ""
    columns, sentence = KINDS[kind]
    frame = pd.read_csv(csv, skiprows=1, keep_default_na=False, na_values=[""])
    if not columns <= set(frame):
        return ""
    if "source" in frame:
        frame = frame[frame["source"] == "ours"]
    try:
        return sentence(frame, options, label)
    except UserError:  # several values of one seed where one can be shown
        return ""


def _kl(frame: pd.DataFrame, options: dict, label: Label) -> str:
    from scalpel.exhibits.results import task_name

    measure = frame["measure"].iloc[0]
    said = _by_run(_last(frame[frame["measure"] == measure], ["run"], "kl", "kl_stderr"), label)
    of = "the base model" if options["reference"] == "base" else "the model started from"
    return said and f"Mean KL from {of} on {task_name(measure)} at the last checkpoints, in nats: {said}."


def _weight_change_course(frame: pd.DataFrame, options: dict, label: Label) -> str:
    said = _by_run(_last(frame, ["run"], "relative", times=100), label)
    return said and f"Mean relative weight change at the last checkpoints, in percent: {said}."


def _weight_change(frame: pd.DataFrame, options: dict, label: Label) -> str:
    """Which projection changed most and least."""
    from scalpel.exhibits.results import PROJECTIONS

    layers = frame.groupby(["run", "seed", "step", "projection"], sort=False, as_index=False)["relative"].mean()
    said = _most_and_least(_last(layers, ["projection"], "relative", times=100), lambda name: PROJECTIONS[name])
    return said and f"At the last checkpoint of {label(frame['run'].iloc[0])}, means over layers in percent: {said}."


def _scores(frame: pd.DataFrame, options: dict, label: Label) -> str:
    """Of each benchmark the run that scored highest and the one that scored lowest."""
    from scalpel.exhibits.results import task_name, task_order

    parts = []
    for task in task_order(frame["task"]):
        said = _most_and_least(_last(frame[frame["task"] == task], ["run"], "value", "stderr", 100), label, HIGH)
        parts += [f"{task_name(task)}: {said}"] if said else []
    return f"Scores of the last checkpoints in percent. {'. '.join(parts)}." if parts else ""


def _frontier(frame: pd.DataFrame, options: dict, label: Label) -> str:
    from scalpel.exhibits.results import final

    names = ("gain", "gain_mean_stderr", "loss", "loss_mean_stderr")
    last = 100 * final(frame).groupby("run", sort=False)[list(names)].mean()
    last = last.dropna(subset=["gain", "loss"])
    gains, losses = (texts_of(last[name], last[f"{name}_mean_stderr"]) for name in ("gain", "loss"))
    parts = [f"{label(run)} {gain} and {loss}" for run, gain, loss in zip(last.index, gains, losses, strict=True)]
    return f"Gain and loss at the last checkpoints, in points: {'; '.join(parts)}." if parts else ""


def _training_curves(frame: pd.DataFrame, options: dict, label: Label) -> str:
    parts = []
    for column, name in options["columns"].items():
        said = _by_run(_last(frame[frame["column"] == column], ["run"], "smoothed"), label)
        parts += [f"{name}, {said}"] if said else []
    return f"Moving averages at the last steps: {'. '.join(parts)}." if parts else ""


def _last(frame: pd.DataFrame, by: list[str], value: str, stderr: str | None = None, times: float = 1) -> pd.DataFrame:
    """Columns `by`, value and text (mean over seeds ± standard error, both `times` as large) of the last steps; rows
    without a finite mean are left out."""
    import numpy as np

    from scalpel.exhibits.results import final
    from scalpel.exhibits.uncertainty import joined

    found = joined(final(frame), by, value, stderr).rename(columns={value: "value"})
    found = found[np.isfinite(found["value"].astype(float))]
    found = found.assign(value=times * found["value"], stderr=times * found["stderr"])
    return found.assign(text=texts_of(found["value"], found["stderr"]))


def _by_run(found: pd.DataFrame, label: Label) -> str:
    return "; ".join(f"{label(run)} {text}" for run, text in zip(found["run"], found["text"], strict=True))


def _most_and_least(found: pd.DataFrame, name: Label, words: tuple[str, str] = ("most", "least")) -> str:
    """By the first column, in these words; all alike is said as that."""
    if found.empty:
        return ""
    ordered = found.sort_values("value", kind="stable")
    (least, low), (most, high) = ((ordered[found.columns[0]].iloc[at], ordered["text"].iloc[at]) for at in (0, -1))
    if ordered["value"].iloc[0] == ordered["value"].iloc[-1]:
        return f"{high} of all" if len(found) > 1 else f"{name(most)} {high}"
    return f"{words[0]} {name(most)} {high}; {words[1]} {name(least)} {low}"


COURSE = {"run", "seed", "step"}
KINDS: dict[str, tuple[set[str], Callable[[pd.DataFrame, dict, Label], str]]] = {  # the columns it needs, and how
    "kl": (COURSE | {"measure", "kl", "kl_stderr", "source"}, _kl),
    "weight_change_course": (COURSE | {"relative", "source"}, _weight_change_course),
    "weight_change": (COURSE | {"projection", "relative", "source"}, _weight_change),
    "benchmarks": (COURSE | {"task", "value", "stderr"}, _scores),
    "final_scores": (COURSE | {"task", "value", "stderr"}, _scores),
    "frontier": (COURSE | {"gain", "gain_mean_stderr", "loss", "loss_mean_stderr"}, _frontier),
    "training_curves": (COURSE | {"column", "smoothed"}, _training_curves),
}
