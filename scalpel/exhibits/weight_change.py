"""Relative weight change of one run by projection and layer, over all checkpoints."""

from typing import Annotated

from pydantic import Field

from scalpel.config.types import Reference
from scalpel.exhibits.options import ComparedOptions

READS = ("weight_change",)
DASHED = (0, (4, 1.5))
LOOKS = [("#0072B2", "-"), ("#E69F00", DASHED), ("#D55E00", "-"), ("#009E73", DASHED), ("#CC79A7", "-"),
         ("#56B4E9", DASHED), ("#000000", (0, (1, 1)))]  # fmt: skip


class Options(ComparedOptions):
    runs: Annotated[tuple[Reference, ...], Field(min_length=1, max_length=1)]


def table(results, options):
    """Columns run, seed, step, x, layer, projection, relative: ||W - W_reference||_F / ||W_reference||_F."""
    found = results.compared(options.reference)
    frame = found.placed(found.weight_change(), options.x)
    return frame[["run", "seed", "step", "x", "layer", "projection", "relative"]]


def draw(frame, options, style):
    """A panel per projection over layers, with a line per checkpoint (late ones dark), the mean over seeds.

    One more panel: each projection's mean over layers as training proceeds, with a band between seeds. All panels share
    the figure's own y scale.
    """
    import matplotlib
    import seaborn
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    from scalpel.exhibits.results import PROJECTIONS
    from scalpel.exhibits.uncertainty import joined

    figure = style.figure(9.0, 4.8, f"Relative weight change: {style.label(style.runs[0])}")
    panels = figure.subplots(2, 4, sharey=True)
    scale = Normalize(0, frame["x"].max())
    last = frame[frame["x"] == frame["x"].max()]
    lines = {"x": "layer", "y": "relative", "hue": "x", "palette": "viridis_r", "hue_norm": scale,
             "errorbar": None, "legend": False}  # fmt: skip
    for axes, (projection, name) in zip(panels.flat, PROJECTIONS.items(), strict=False):
        seaborn.lineplot(frame[frame["projection"] == projection], **lines, linewidth=0.9, ax=axes)
        seaborn.lineplot(last[last["projection"] == projection], **lines, linewidth=2, ax=axes)
        axes.set(title=name, xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    layers = frame.groupby(["projection", "seed", "x"], as_index=False)["relative"].mean()
    means = joined(layers, ["projection", "x"], "relative")
    overall = panels.flat[-1]
    for (projection, name), (color, dashes) in zip(PROJECTIONS.items(), LOOKS, strict=True):
        line = means[means["projection"] == projection]
        look = {"color": color, "linestyle": dashes, "linewidth": 1.3, "marker": "o" if len(line) == 1 else None}
        overall.plot(line["x"], line["relative"], label=name, **look)
        low, high = line["relative"] - line["stderr"], line["relative"] + line["stderr"]
        overall.fill_between(line["x"], low, high, color=color, alpha=0.15, linewidth=0)
    overall.set_title("mean over layers")
    style.label_x(overall.xaxis)
    for row in panels:
        row[0].set_ylabel(rf"$\|W-W_{{{options.reference}}}\|_F\,/\,\|W_{{{options.reference}}}\|_F$")
    if options.log_y:
        overall.set_yscale("log")
    else:
        overall.set_ylim(bottom=0)
    colours = matplotlib.cm.ScalarMappable(scale, "viridis_r")
    style.label_x(figure.colorbar(colours, ax=panels[0].tolist(), pad=0.02).ax.yaxis)
    figure.legend(
        *overall.get_legend_handles_labels(), loc="outside lower center", ncols=7, title='panel "mean over layers"'
    )
    return figure
