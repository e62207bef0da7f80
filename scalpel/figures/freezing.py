"""Figure 7: benchmark scores of SFT on all weights, with MLPs frozen, and on query and key alone."""

from pathlib import Path

from scalpel.figures import results, style
from scalpel.figures.options import FigureOptions


def draw(inputs: dict[str, list[Path]], options: FigureOptions):
    """Final checkpoints as bars, with standard errors."""
    frames = {run: results.scores(inputs[f"evaluate/{run}"]) for run in style.shown_runs(inputs, "evaluate", options)}
    figure = style.new_figure(options, 9.0, 3.4, "Freezing parts of the model during SFT")
    style.grouped_bars(figure.subplots(), frames, options)
    return figure
