"""Benchmark scores: of the final checkpoints as bars, and of all checkpoints as one panel per benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from scalpel.config.types import BASE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.options import ExhibitOptions
    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("evaluate",)
PANELS = 4  # in a row


def table(results: Results, options: ExhibitOptions) -> pd.DataFrame:
    """Columns run, seed, task, step, x, value (0 to 1), stderr (over questions), questions."""
    scores = results.placed(results.scores(), options.x)
    return scores[["run", "seed", "task", "step", "x", "value", "stderr", "questions"]]


def draw(frame: pd.DataFrame, options: ExhibitOptions, style: Style) -> Figure:
    """Base models, which have no course of training, are dashed lines in the panels. A panel shows the range of its own
    scores, and the note says so; the bars are comparable, from 0 to 100."""
    from scalpel.exhibits import axis
    from scalpel.exhibits.results import task_name, task_order
    from scalpel.exhibits.style import drawn

    frame = drawn(frame)
    tasks = task_order(frame["task"])
    columns = style.in_a_row(min(len(tasks), PANELS))
    rows = -(-len(tasks) // columns)
    columns = -(-len(tasks) // rows)  # five panels: three and two
    figure = style.figure(9.0, 3.4 + 1.9 * rows, "Benchmarks")
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=[3.2, 1.9 * rows]))
    bars = above.subplots()
    style.bars(bars, frame)
    style.legend(bars, "bars", ncols=min(len(style.runs), 5), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    frame = frame.assign(value=100 * frame["value"], stderr=100 * frame["stderr"])
    base = frame["run"].str.rpartition("/")[2] == BASE
    panels = list(below.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes, task in zip(panels, tasks, strict=False):
        of_task = frame["task"] == task
        for run, score in frame[of_task & base].groupby("run", sort=False)["value"].mean().items():
            axes.axhline(score, color=style.colors[run], linestyle=(0, (4, 2)), linewidth=1.2)
        style.lines(axes, frame[of_task & ~base], "value", "stderr", markersize=3, linewidth=1.2)
        axes.set_title(task_name(task))
        axes.margins(y=0.08)
        axes.set_xlabel("")
    for place, axes in enumerate(panels):
        axes.set_visible(place < len(tasks))
        axes.tick_params(labelbottom=place + columns >= len(tasks))
    below.supylabel("score (%)", fontsize=options.font_size)
    note = ("dashed: base; bands: one standard error", "each panel's scale is cut to its own scores")
    between = "\n" if options.page_columns == 1 else "; "
    below.supxlabel(f"{axis.LABELS[options.x]}\n{between.join(note)}", fontsize=options.font_size)
    return figure
