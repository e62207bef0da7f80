"""Score against counted FLOPs for every evaluated checkpoint: one curve a run, from the base model's score on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalpel.config.types import BASE, Name
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("train", "evaluate")


class Options(ExhibitOptions):
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)] = ("math_500",)  # their mean score is shown
    log_x: bool = True


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, checkpoint, x (FLOPs counted from the base model on), value and stderr (shares of 1).

    The base model has x 0. Raises UserError when a task was asked of no checkpoint.
    """
    import math

    import pandas as pd

    from scalpel.errors import UserError
    from scalpel.exhibits import axis

    scores = results.scores()
    chosen = scores[scores["task"].isin(options.tasks)]
    if not len(chosen):
        raise UserError(
            f"tasks: none of {', '.join(options.tasks)} was asked; there are {', '.join(set(scores.task))}."
        )
    place, trained = axis.places(results.found, "flops"), {(r.run, r.seed) for r in results.of("train")}
    rows = []
    for (run, seed, step), found in chosen.groupby(["run", "seed", "step"], sort=False):
        if len(found) < chosen["task"].nunique() or not (run == BASE or (run, seed) in trained):
            continue
        error = math.sqrt(math.fsum(found["stderr"] ** 2)) / len(found)
        x = place(run, seed, step) if run != BASE else 0.0
        rows.append((run, seed, step, x, found["value"].mean(), error))
    frame = pd.DataFrame(rows, columns=["run", "seed", "step", "x", "value", "stderr"])
    frame.insert(3, "checkpoint", frame.groupby(["run", "seed"])["step"].rank("dense").astype(int))
    frame["x"] = frame.groupby(["run", "checkpoint"])["x"].transform("mean")
    return frame


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    from matplotlib.ticker import EngFormatter, NullLocator

    from scalpel.exhibits.results import task_name

    figure = style.figure(6.4, 4.2, "Score against training FLOPs")
    axes = figure.subplots()
    of_base = frame[frame["run"] == BASE]
    shown = frame[frame["run"] != BASE].assign(value=lambda f: 100 * f["value"], stderr=lambda f: 100 * f["stderr"])
    style.lines(axes, shown, "value", "stderr", markersize=3.5)
    if len(of_base):
        axes.axhline(100 * of_base["value"].mean(), color=style.colors[BASE], linestyle=(0, (4, 2)), linewidth=1.2)
    if options.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("counted FLOPs, from the base model on")
    axes.set_ylabel(f"{', '.join(map(task_name, options.tasks))} (%)")
    style.legend(figure, loc="outside right center")
    return figure
