"""Figure 6: relative weight change under SFT, by projection and layer."""

from pathlib import Path

from scalpel.figures import style
from scalpel.figures.norms import draw_run
from scalpel.figures.options import FigureOptions


def draw(inputs: dict[str, list[Path]], options: FigureOptions):
    run = style.one_run(inputs, "weight_change", options)
    return draw_run(inputs[f"weight_change/{run}"], options, f"Relative weight change: {style.label(run, options)}")
