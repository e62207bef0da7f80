"""Figure 3: benchmark scores, at the end of training as bars and over all checkpoints as small multiples."""

import math
from pathlib import Path

from scalpel.figures import results, style
from scalpel.figures.options import FigureOptions

COLUMNS = 4


def draw(inputs: dict[str, list[Path]], options: FigureOptions):
    """Bars with standard errors on top; below, one panel per task over optimizer steps."""
    runs = style.shown_runs(inputs, "evaluate", options)
    frames = {run: results.scores(inputs[f"evaluate/{run}"]) for run in runs}
    tasks = results.task_order(frames.values())
    rows = math.ceil(len(tasks) / COLUMNS)
    figure = style.new_figure(options, 9.0, 3.4 + 1.9 * rows, "Benchmarks")
    above, below = figure.subfigures(2, 1, height_ratios=[3.2, 1.9 * rows])
    style.grouped_bars(above.subplots(), frames, options)
    panels = list(below.subplots(rows, min(COLUMNS, len(tasks)), sharex=True, squeeze=False).flat)
    for axes, task in zip(panels, tasks, strict=False):
        for run, frame in frames.items():
            points = frame[frame["task"] == task]
            look = style.look(run, options, runs)
            values, errors = 100 * points["value"], 100 * points["stderr"].fillna(0)
            if run == "base":
                for value in values:
                    axes.axhline(value, color=look["color"], linestyle=(0, (4, 2)), linewidth=1.2)
                continue
            axes.plot(points["step"], values, **look, markersize=2.5, linewidth=1.2)
            axes.fill_between(points["step"], values - errors, values + errors, color=look["color"], alpha=0.13, lw=0)
        axes.set_title(results.TASKS.get(task, task))
        axes.margins(y=0.08)
    for place, axes in enumerate(panels):
        axes.set_visible(place < len(tasks))
        axes.tick_params(labelbottom=place + COLUMNS >= len(tasks))
    below.supylabel("score (%)", fontsize=options.font_size)
    below.supxlabel("optimizer step  (dashed: base; bands: one standard error)", fontsize=options.font_size)
    return figure
