"""Benchmark scores of the final checkpoints, as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.options import ExhibitOptions
    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("evaluate",)


def table(results: Results, options: ExhibitOptions) -> pd.DataFrame:
    """Columns run, seed, task, step, value (0 to 1), stderr (over questions), questions."""
    from scalpel.exhibits.results import final

    return final(results.scores())[["run", "seed", "task", "step", "value", "stderr", "questions"]]


def draw(frame: pd.DataFrame, options: ExhibitOptions, style: Style) -> Figure:
    figure = style.figure(9.0, 3.4, "Final scores")
    axes = figure.subplots()
    style.bars(axes, frame)
    style.legend(axes, "bars", ncols=min(len(style.runs), 5), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
