"""What figures 5 and 6 share: relative weight change by projection and layer, over all checkpoints."""

from pathlib import Path

import matplotlib
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from scalpel.config import PROJECTIONS
from scalpel.figures import results, style
from scalpel.figures.options import FigureOptions

STYLES = ["-", (0, (4, 1.5)), "-", (0, (4, 1.5)), "-", (0, (4, 1.5)), (0, (1, 1))]


def draw_run(directories: list[Path], options: FigureOptions, title: str):
    """Seven panels over layers, one per projection and one line per checkpoint (late ones dark); the eighth
    shows each projection's mean over layers as training goes on. All eight share the figure's own y scale.
    """
    frame = results.weight_change(directories)
    figure = style.new_figure(options, 9.0, 4.8, title)
    panels = figure.subplots(2, 4, sharey=True)
    steps = sorted(frame["step"].unique())
    colours = matplotlib.colormaps["viridis_r"]
    scale = Normalize(0, max(steps))
    for axes, projection in zip(panels.flat, PROJECTIONS, strict=False):
        for step in steps:
            rows = frame[(frame["projection"] == projection) & (frame["step"] == step)].sort_values("layer")
            axes.plot(
                rows["layer"], rows["relative"], color=colours(scale(step)), linewidth=2 if step == steps[-1] else 0.9
            )
        axes.set_title(results.PROJECTION_LABELS[projection])
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    last = panels.flat[-1]
    means = frame.groupby(["projection", "step"])["relative"].mean()
    palette = style.PALETTES[options.palette]
    for i, projection in enumerate(PROJECTIONS):
        line = means[projection]
        last.plot(line.index, line, color=palette[i + 1], linestyle=STYLES[i], linewidth=1.3,
                  label=results.PROJECTION_LABELS[projection])  # fmt: skip
    last.set_title("mean over layers")
    last.set_xlabel("optimizer step")
    for row in panels:
        row[0].set_ylabel(r"$\|W-W_{base}\|_F\,/\,\|W_{base}\|_F$")
    if options.log_y:
        last.set_yscale("log")
    else:
        last.set_ylim(bottom=0)
    figure.colorbar(
        matplotlib.cm.ScalarMappable(scale, colours), ax=panels[0].tolist(), label="optimizer step", pad=0.02
    )
    figure.legend(
        *last.get_legend_handles_labels(), loc="outside lower center", ncols=7, title='panel "mean over layers"'
    )
    return figure
