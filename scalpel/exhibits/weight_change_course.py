"""Relative weight change of all runs over training, the mean over all matrices; published courses beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.exhibits.options import BesideOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("weight_change",)
PUBLISHED = ("weight_change_trajectories", "questions_per_step")
Options = BesideOptions


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, x, relative (mean over layers and projections) and source: ours or published."""
    import numpy as np
    import pandas as pd

    from scalpel.exhibits.beside import OURS, PUBLISHED, courses
    from scalpel.exhibits.results import PROJECTIONS

    found = results.compared(options.reference)
    frame = found.placed(found.weight_change(), options.x)
    frame = frame.groupby(["run", "seed", "step", "x"], sort=False, as_index=False)["relative"].mean()
    rows = [
        (run, 0, step, x, float(np.mean([course[projection][place] for projection in PROJECTIONS])), PUBLISHED)
        for run, (course, places) in courses(results, "weight_change_trajectories", options).items()
        for place, (step, x) in enumerate(zip(course["steps"], places, strict=True))
    ]
    ours = frame.assign(source=OURS)
    return pd.concat([ours, pd.DataFrame(rows, columns=list(ours))], ignore_index=True) if rows else ours


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """One panel for ours, one for what is published, each with its own scale."""
    style = style.with_runs({run: name for run, name in options.also_published.items() if run in set(frame["run"])})
    sources = list(dict.fromkeys(frame["source"]))
    columns = 1 if options.page_columns == 1 else len(sources)
    rows = len(sources) // columns
    figure = style.figure(2.2 + 4.4 * len(sources), 3.8 * rows, "Relative weight change, mean over matrices")
    for axes, source in zip(figure.subplots(rows, columns, squeeze=False).flat, sources, strict=True):
        style.lines(axes, frame[frame["source"] == source], "relative")
        axes.set_title(source if len(sources) > 1 else "")
        if options.log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if source == sources[0] or columns == 1:
            axes.set_ylabel(rf"$\|W-W_{{{options.reference}}}\|_F\,/\,\|W_{{{options.reference}}}\|_F$")
    style.legend(figure, loc="outside right center")
    return figure
