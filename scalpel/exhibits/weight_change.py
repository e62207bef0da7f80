"""Relative weight change of one run by projection and layer, over all checkpoints; the published one below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalpel.config.types import Reference
from scalpel.exhibits.options import BesideOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("weight_change",)
PUBLISHED = ("weight_change_trajectories", "questions_per_step")
DASHED = (0, (4, 1.5))
LOOKS = [("#0072B2", "-"), ("#E69F00", DASHED), ("#D55E00", "-"), ("#009E73", DASHED), ("#CC79A7", "-"),
         ("#56B4E9", DASHED), ("#000000", (0, (1, 1)))]  # fmt: skip


class Options(BesideOptions):
    runs: Annotated[tuple[Reference, ...], Field(min_length=1, max_length=1)]


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, x, layer, projection, relative: ||W - W_reference||_F / ||W_reference||_F; and source:
    ours or published."""
    import pandas as pd

    from scalpel.exhibits.beside import OURS, PUBLISHED, courses
    from scalpel.exhibits.results import PROJECTIONS

    found = results.compared(options.reference)
    frame = found.placed(found.weight_change(), options.x).assign(source=OURS)
    rows = [
        (run, 0, step, x, layer, projection, value, PUBLISHED)
        for run, (course, places) in courses(results, "weight_change_trajectories", options).items()
        for projection in PROJECTIONS
        for step, x, values in zip(course["steps"], places, course[projection], strict=True)
        for layer, value in enumerate(values)
    ]
    columns = ["run", "seed", "step", "x", "layer", "projection", "relative", "source"]
    return (
        pd.concat([frame[columns], pd.DataFrame(rows, columns=columns)], ignore_index=True) if rows else frame[columns]
    )


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """A panel per projection over layers, with a line per checkpoint (late ones dark), the mean over seeds.

    One more panel: each projection's mean over layers as training proceeds, with a band between seeds. All panels share
    the y scale of what is ours, or of what is published.
    """
    sources = list(dict.fromkeys(frame["source"]))
    height = 9.0 if options.page_columns == 1 else 4.8 if options.page_columns else 4.4
    figure = style.figure(9.0, 0.4 + height * len(sources), f"Relative weight change: {style.label(style.runs[0])}")
    parts = figure.subfigures(len(sources), 1, squeeze=False)[:, 0]
    for part, source in zip(parts, sources, strict=True):
        overall = _draw_source(part, frame[frame["source"] == source], options, style)
        if len(sources) > 1:
            part.suptitle(source, fontsize=options.font_size + 0.5)
    figure.legend(
        *overall.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2 if options.page_columns == 1 else 4 if options.page_columns else 7,
        title='panel "mean over layers"',
    )
    return figure


def _draw_source(figure: SubFigure, frame: pd.DataFrame, options: Options, style: Style) -> Axes:
    """The panels of what is ours or of what is published; returns the axes of the mean over layers."""
    import matplotlib
    import seaborn
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    from scalpel.exhibits.results import PROJECTIONS
    from scalpel.exhibits.uncertainty import joined

    panels = figure.subplots(*((4, 2) if options.page_columns == 1 else (2, 4)), sharey=True)
    scale = Normalize(0, frame["x"].max())
    last = frame[frame["x"] == frame["x"].max()]
    lines = {"x": "layer", "y": "relative", "hue": "x", "palette": "viridis_r", "hue_norm": scale,
             "errorbar": None, "legend": False}  # fmt: skip
    for axes, (projection, name) in zip(panels.flat, PROJECTIONS.items(), strict=False):
        seaborn.lineplot(frame[frame["projection"] == projection], **lines, linewidth=0.9, ax=axes)
        seaborn.lineplot(last[last["projection"] == projection], **lines, linewidth=2, ax=axes)
        axes.set(title=name, xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(5 if options.page_columns is None else 3, integer=True))
    layers = frame.groupby(["projection", "seed", "x"], as_index=False)["relative"].mean()
    means = joined(layers, ["projection", "x"], "relative")
    overall = panels.flat[-1]
    for (projection, name), (color, dashes) in zip(PROJECTIONS.items(), LOOKS, strict=True):
        line = means[means["projection"] == projection]
        look = {"color": color, "linestyle": dashes, "linewidth": 1.3, "marker": "o" if len(line) == 1 else None}
        overall.plot(line["x"], line["relative"], label=name, **look)
        low, high = line["relative"] - line["stderr"], line["relative"] + line["stderr"]
        overall.fill_between(line["x"], low, high, color=color, alpha=0.15, linewidth=0)
    overall.set_title(style.wrapped("mean over layers", 10))
    style.label_x(overall.xaxis)
    of = options.reference
    name = "change" if options.page_columns else rf"$\|W-W_{{{of}}}\|_F\,/\,\|W_{{{of}}}\|_F$"
    for row in panels:
        row[0].set_ylabel(name)
    if options.log_y:
        overall.set_yscale("log")
    else:
        overall.set_ylim(bottom=0)
    colours = matplotlib.cm.ScalarMappable(scale, "viridis_r")
    beside = panels if options.page_columns == 1 else panels[0]
    style.label_x(figure.colorbar(colours, ax=list(beside.flat), pad=0.02).ax.yaxis)
    return overall
