"""Figure 4: KL(base || checkpoint) over training; all positions solid, the solution's alone dashed."""

from pathlib import Path

from matplotlib.lines import Line2D

from scalpel.figures import results, style
from scalpel.figures.options import FigureOptions


def draw(inputs: dict[str, list[Path]], options: FigureOptions):
    """Unweighted means over questions of the means over positions, in nats."""
    runs = style.shown_runs(inputs, "kl", options)
    figure = style.new_figure(options, 7.0, 3.8, "KL divergence from the base model")
    axes = figure.subplots()
    handles = []
    for run in runs:
        frame = results.kl(inputs[f"kl/{run}"])
        look = style.look(run, options, runs)
        axes.plot(frame.index, frame["kl"], **look)
        axes.plot(frame.index, frame["kl_solution"], **look, markerfacecolor="white", linestyle=(0, (3, 1.5)))
        handles.append(Line2D([], [], **look, label=style.label(run, options)))
    handles.append(Line2D([], [], color="#303030", label="all positions"))
    handles.append(Line2D([], [], color="#303030", linestyle=(0, (3, 1.5)), label="solution only"))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("KL(base || checkpoint)\n(nats per position)")
    if options.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
