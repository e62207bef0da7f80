"""Figure 1: accuracy and format reward of GRPO over training steps, raw and smoothed."""

from pathlib import Path

from scalpel.figures import results, style
from scalpel.figures.options import FigureOptions

PANELS = {"accuracy_reward": "accuracy reward", "format_reward": "format reward"}


def draw(inputs: dict[str, list[Path]], options: FigureOptions):
    """One panel per reward, unweighted: the mean over a step's completions, between 0 and 1."""
    runs = style.shown_runs(inputs, "train", options)
    figure = style.new_figure(options, 7.0, 3.0, "GRPO: rewards during training")
    panels = figure.subplots(1, 2, sharey=True)
    for run in runs:
        log = results.train_log(inputs[f"train/{run}"], list(PANELS))
        for axes, column in zip(panels, PANELS, strict=True):
            style.curve(axes, log["step"], log[column], options, style.look(run, options, runs), run)
    for axes, name in zip(panels, PANELS.values(), strict=True):
        axes.set_title(name)
        if not options.log_y:
            axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("mean over completions")
    handles = panels[0].get_legend_handles_labels()[0]
    if len(runs) > 1:
        panels[1].legend(handles, [style.label(run, options) for run in runs], loc="lower right")
    else:
        raw = panels[1].lines[0]
        panels[1].legend([raw, handles[0]], ["each step", f"moving average ({options.smoothing:g})"], loc="lower right")
    return figure
