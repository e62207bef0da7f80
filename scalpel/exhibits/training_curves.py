"""Curves of what was logged at every optimizer step: one panel per column, each step pale and smoothed on top.

A run that is given in epochs ends with a step that takes the rows that are left (scalpel/methods/schedule.py). Its loss
and gradient norm are means over few rows, a spike at the end of the curve that says nothing of the run: such a step
stands in the table and is not drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalpel.config.load import nearest
from scalpel.errors import UserError
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("train", "given")
PANELS = 3  # in a row
SIZES = ("questions", "tokens")  # columns of the log that tell how large a step was; given runs may lack them


class Options(ExhibitOptions):
    columns: Annotated[dict[str, str], Field(min_length=1)]  # column of log.parquet -> what its axis says
    each_its_own: bool = False  # a panel shows the runs whose log has its column; false: every run must have them all
    limits: tuple[float, float] | None = None  # of the value axis; None: from the values, and from 0 if none is below


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, x, partial (whether it is a last step of fewer questions or tokens), column, value and
    smoothed: an exponential moving average, of logarithms where the axis is logarithmic; zeros have none there, and the
    curve a gap. Partial steps have none either."""
    import numpy as np

    log = results.placed(_log(results, options), options.x).assign(partial=partial(results.log()))
    rows = log.melt(["run", "seed", "step", "x", "partial"], list(options.columns), "column", "value")
    if options.each_its_own:
        rows = rows[rows.groupby(["run", "column"])["value"].transform("count") > 0].reset_index(drop=True)
    whole = rows.assign(value=rows["value"].mask(rows["partial"]))
    series = whole.groupby(["run", "seed", "column"], sort=False)["value"]
    if not options.log_y:
        averages = series.transform(lambda values: smoothed(values, options.smoothing))
        return rows.assign(smoothed=averages.mask(rows["partial"]))
    of_logs = series.transform(lambda values: smoothed(np.log(values.where(values > 0)), options.smoothing))
    return rows.assign(smoothed=np.exp(of_logs).where(whole["value"] > 0))


def partial(log: pd.DataFrame) -> pd.Series:
    """Which rows of training logs are a run's last step, and smaller than all its others.

    By questions where all the others ask as many; else, as of steps up to a budget of tokens, by tokens. Where the log
    has no such numbers, or fewer than three steps, none is.
    """
    import pandas as pd

    found = pd.Series(False, index=log.index)
    for _, steps in log.groupby(["run", "seed"], sort=False):
        sizes = {name: steps[name] for name in SIZES if name in steps and steps[name].notna().all()}
        if "questions" in sizes and sizes["questions"].iloc[:-1].nunique() > 1:
            del sizes["questions"]
        size = next(iter(sizes.values()), None)
        if size is not None and len(size) > 2:
            found[steps.index[-1]] = size.iloc[-1] < size.iloc[:-1].min()
    return found


def _log(results: Results, options: Options) -> pd.DataFrame:
    """The columns as numbers; nan where a run has none, or where a step logged none."""
    columns = list(options.columns)
    if not options.each_its_own:
        log = results.log(columns)
    else:
        log = results.log()
        for column in columns:
            if column not in log:
                raise UserError(
                    f"training_curves: no training log of {', '.join(results.runs)} has a column {column!r}"
                    f"{nearest(column, log.columns)}."
                )
    return log.astype(dict.fromkeys(columns, float))


def smoothed(values: Iterable[float], weight: float) -> list[float]:
    """Exponential moving average, divided by the sum of its weights, so that the start has no pull; nan is left out."""
    average, total, result = 0.0, 0.0, []
    for value in values:
        if value == value:
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        result.append(average / total if total else float("nan"))
    return result


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """Several seeds: the mean of their smoothed curves with a band of one standard error between seeds. The legend says
    when last steps are left out."""
    from matplotlib.lines import Line2D

    note = [Line2D([], [], color="none", label="smaller last steps left out")] if frame["partial"].any() else []
    frame = frame[~frame["partial"]]
    count = len(options.columns)
    columns = style.in_a_row(min(count, PANELS))
    rows = -(-count // columns)
    figure = style.figure(3.4 * columns + 0.2, 0.6 + 2.6 * rows, "Training")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (column, name) in zip(panels, options.columns.items(), strict=False):
        shown = frame[frame["column"] == column]
        for (run, _), line in shown.groupby(["run", "seed"], sort=False):
            axes.plot(line["x"], line["value"], color=style.colors[run], alpha=0.3, linewidth=0.7)
        style.lines(axes, shown, "smoothed", points=False)
        axes.set_ylabel(style.wrapped(name))
        if options.log_y:
            axes.set_yscale("log")
        elif options.limits:
            axes.set_ylim(options.limits)
        elif shown["value"].min() >= 0:
            axes.set_ylim(bottom=0)
    for axes in panels[count:]:
        axes.set_visible(False)
    if len(style.runs) > 1:
        style.legend(figure, "lines", loc="outside lower center", ncols=min(len(style.runs), 4), extra=note)
    else:
        color = style.colors[style.runs[0]]
        raw = Line2D([], [], color=color, alpha=0.3, linewidth=0.7, label="each step")
        average = Line2D([], [], color=color, label=f"moving average ({options.smoothing:g})")
        figure.legend(handles=[raw, average, *note], loc="outside lower center", ncols=2)
    return figure
