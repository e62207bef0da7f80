"""What each emulated bug of SFT does to the score: which micro-batches reach the optimizer, and how the mean is taken.

The paper's own rows (its table 2, figure 1 on the right) stand beside.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scalpel.config.types import Name
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("train", "evaluate")
PUBLISHED = ("scores",)
CODE = ("exhibits/paper_table.py",)
REACHED = {"all": "all", "first_and_last": "first and last", "first": "first alone"}
MEANS = {"token": "token mean (right)", "group": "mean of micro-batch means", "rank": "mean of rank means"}
COLORS = {"token": "#009E73", "group": "#0072B2", "rank": "#E69F00"}


class Options(ExhibitOptions):
    tasks: tuple[Name, ...] = ()  # whose mean is shown; empty: all
    section: str = "table_2"
    published_labels: dict[str, str] = {}  # published row -> what stands at its bar, in their order


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns of (here, published), tasks, run, micro_batches, loss_mean, value (percent), ±: deviation over seeds.

    tasks: which the value is a mean over. Of a published row, whose single values are not there for all of them, it is
    the paper's own average.
    """
    import pandas as pd

    from scalpel.artifact.files import RECIPE, read_json
    from scalpel.exhibits.paper_table import ours
    from scalpel.exhibits.results import task_name

    tasks = options.tasks or tuple(dict.fromkeys(results.scores()["task"]))
    shown = ", ".join(map(task_name, options.tasks)) or "all tasks"
    scores = ours(results, {"mean": tasks})
    rows = []
    for run, step in {result.run: result.step for result in results.of("train")}.items():
        recipe = read_json(step / RECIPE)["recipe"]
        value, spread = scores[run]["mean"]
        how = {"micro_batches": recipe.get("micro_batches", "all"), "loss_mean": recipe.get("loss_mean", "token")}
        rows.append({"of": "here", "tasks": shown, "run": run} | how | {"value": value, "value ±": spread})
    there = results.published.get("scores", {}).get(options.section, {})
    labels = options.published_labels
    alone = len(options.tasks) == 1 and all(options.tasks[0] in there[run] for run in labels)
    of, name_of = (options.tasks[0], shown) if alone else ("average", "the paper's tasks")
    for run, name in labels.items():
        value, spread = (*there[run][of], math.nan)[:2]
        rows.append({"of": "published", "tasks": name_of, "run": name, "value": value, "value ±": spread})
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """Points with whiskers of one standard deviation over seeds; the two panels have axes of their own."""
    from matplotlib.lines import Line2D

    ours, theirs = frame[frame["of"] == "here"], frame[frame["of"] == "published"]
    figure = style.figure(8.6 if len(theirs) else 5.2, 3.4, "SFT with a framework's bugs")
    widths = [1, 1.3] if len(theirs) else [1]
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    places, names = [reached for reached in REACHED if reached in set(ours["micro_batches"])], []
    for number, mean in enumerate(MEANS):
        of_mean = ours[ours["loss_mean"] == mean]
        if not len(of_mean):
            continue
        names.append(mean)
        at: Sequence[float] = [places.index(reached) + (number - 1) * 0.2 for reached in of_mean["micro_batches"]]
        panels[0].errorbar(
            at, of_mean["value"], of_mean["value ±"], fmt="o", color=COLORS[mean], elinewidth=1, capsize=2
        )
    panels[0].set_xticks(range(len(places)), [REACHED[reached] for reached in places])
    panels[0].set_xlabel("micro-batches that reach the optimizer")
    for axes, part in zip(panels, (ours, theirs), strict=False):
        axes.set_ylabel(f"{part['tasks'].iloc[0]}, mean (%)")
    panels[0].set_title("here")
    handles = [Line2D([], [], color=COLORS[mean], marker="o", linestyle="", label=MEANS[mean]) for mean in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    if len(theirs):
        at = range(len(theirs))
        panels[1].errorbar(at, theirs["value"], theirs["value ±"], fmt="o", color="#606870", elinewidth=1, capsize=2)
        panels[1].set_xticks(range(len(theirs)), [name.replace(", ", "\n") for name in theirs["run"]])
        panels[1].set_title("published (Qwen2.5-Math-7B), axis of its own")
    for axes in panels:
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.15, y=0.15)
    return figure
