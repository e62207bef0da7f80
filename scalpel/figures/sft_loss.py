"""Figure 2: loss and gradient norm of SFT over training steps, raw and smoothed."""

from pathlib import Path

from scalpel.figures import results, style
from scalpel.figures.options import FigureOptions

PANELS = {"loss": "loss (nats per token)", "grad_norm": "gradient norm before clipping"}


def draw(inputs: dict[str, list[Path]], options: FigureOptions):
    """One panel for the loss and one for the gradient norm, one curve per run."""
    runs = style.shown_runs(inputs, "train", options)
    figure = style.new_figure(options, 7.0, 3.2, "SFT: loss and gradient norm during training")
    panels = figure.subplots(1, 2)
    for run in runs:
        log = results.train_log(inputs[f"train/{run}"], list(PANELS))
        for axes, column in zip(panels, PANELS, strict=True):
            look = style.look(run, options, runs)
            style.curve(axes, log["step"], log[column], options, look, style.label(run, options))
    for axes, name in zip(panels, PANELS.values(), strict=True):
        axes.set_ylabel(name)
        if not options.log_y:
            axes.set_ylim(bottom=0)
    panels[0].legend(loc="upper right")
    return figure
