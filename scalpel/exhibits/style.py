"""What all figures share: colours that tell runs apart for colour-blind readers too, sizes, smoothing, bars."""

from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scalpel.errors import UserError
from scalpel.figures.options import FigureOptions
from scalpel.figures.results import TASKS, final, runs_of, task_order

# Okabe and Ito (2008), and Paul Tol's "bright" scheme; yellow only for what comes last.
PALETTES = {
    "okabe_ito": ["#707070", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#F0E442"],
    "tol_bright": ["#8C8C8C", "#4477AA", "#CCBB44", "#EE6677", "#228833", "#AA3377", "#66CCEE", "#000000", "#BBBBBB"],
}
RUNS = ("base", "grpo", "sft_1ep", "sft_3ep", "sft_matched", "sft_frozen_mlp", "sft_qk_only")  # fixed colours
LABELS = {
    "base": "base",
    "grpo": "GRPO",
    "sft_1ep": "SFT, 1 epoch",
    "sft_3ep": "SFT, 3 epochs",
    "sft_matched": "SFT, GRPO's questions",
    "sft_frozen_mlp": "SFT, MLPs frozen",
    "sft_qk_only": "SFT, only query and key",
}
MARKERS = "sovD^Pv*X"


@contextmanager
def applied(options: FigureOptions):
    """Matplotlib settings of one figure; also what makes its files the same on every run."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": options.font_size,
                "axes.titlesize": options.font_size,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": "#E4E4E4",
                "grid.linewidth": 0.6,
                "lines.linewidth": 1.5,
                "lines.markersize": 3.5,
                "legend.frameon": False,
                "figure.constrained_layout.use": True,
                "pdf.fonttype": 42,
                "svg.hashsalt": "scalpel",
                "svg.fonttype": "path",
            }
        )
        yield


def new_figure(options: FigureOptions, width: float, height: float, title: str) -> Figure:
    """An empty figure; width and height in inches and the title are defaults that options replace."""
    figure = Figure(figsize=(options.width_inches or width, options.height_inches or height))
    figure.suptitle(options.title or title, fontsize=options.font_size + 1.5, fontweight="bold")
    return figure


def shown_runs(inputs: dict, stage: str, options: FigureOptions) -> list[str]:
    """Runs to draw, in order; UserError when options name one that has no results here."""
    found = runs_of(inputs, stage)
    for run in options.runs:
        if run not in found:
            raise UserError(f"option runs: {run!r} has no {stage} results here; there are {', '.join(found)}.")
    return list(options.runs) or found


def label(run: str, options: FigureOptions) -> str:
    return options.labels.get(run, LABELS.get(run, run))


def look(run: str, options: FigureOptions, runs: list[str]) -> dict:
    """Colour and marker of a run: fixed for the paper's runs, the next unused ones for others."""
    others = [name for name in runs if name not in RUNS]
    index = RUNS.index(run) if run in RUNS else len(RUNS) + others.index(run)
    colours = PALETTES[options.palette]
    return {"color": colours[index % len(colours)], "marker": MARKERS[index % len(MARKERS)]}


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average without the pull of its start (divided by the sum of its weights)."""
    average, total, result = 0.0, 0.0, []
    for value in np.asarray(values, dtype=float):
        if np.isfinite(value):
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        result.append(average / total if total else np.nan)
    return np.array(result)


def curve(axes, steps, values, options: FigureOptions, look: dict, name: str) -> None:
    """A training curve: raw values thin and pale, smoothed on top."""
    axes.plot(steps, values, color=look["color"], alpha=0.3, linewidth=0.7)
    axes.plot(steps, smoothed(values, options.smoothing), color=look["color"], label=name)
    axes.set_xlabel("optimizer step")
    if options.log_y:
        axes.set_yscale("log")


def grouped_bars(axes, frames: dict, options: FigureOptions) -> None:
    """Final scores in percent, one group per task and one bar per run, whiskers of one standard error."""
    tasks = task_order(frames.values())
    width = 0.84 / len(frames)
    for i, (run, frame) in enumerate(frames.items()):
        last = final(frame).set_index("task").reindex(tasks)
        places = np.arange(len(tasks)) + (i - (len(frames) - 1) / 2) * width
        axes.bar(
            places,
            100 * last["value"],
            width * 0.94,
            yerr=100 * last["stderr"].fillna(0),
            color=look(run, options, list(frames))["color"],
            error_kw={"elinewidth": 0.8, "ecolor": "#303030"},
            label=label(run, options),
        )
    axes.set_xticks(np.arange(len(tasks)), [TASKS.get(task, task) for task in tasks])
    axes.set_xlim(-0.55, len(tasks) - 0.45)
    axes.set_ylim(0, 100)
    axes.set_ylabel("score (%)")
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=min(len(frames), 5), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def one_run(inputs: dict, stage: str, options: FigureOptions) -> str:
    """The one run a figure of a single run shows."""
    runs = shown_runs(inputs, stage, options)
    if len(runs) != 1:
        raise UserError(f"option runs: this figure shows one run, not {len(runs)} ({', '.join(runs)}).")
    return runs[0]
