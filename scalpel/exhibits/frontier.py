"""Gain on the trained task against loss of what was known before: one point a checkpoint, a path a run.

Both are differences from the base model, taken question by question, so that the errors are those of paired scores.
Runs of several studies stand together, each against its own study's base model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalpel.config.types import BASE, Name
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("evaluate",)


class Options(ExhibitOptions):
    gain: Annotated[tuple[Name, ...], Field(min_length=1)] = ("math_500",)  # tasks whose scores are to rise
    kept: tuple[Name, ...] = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")  # tasks whose scores are to stay


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, checkpoint, gain, gain_stderr, loss, loss_stderr (shares of 1; loss is above zero when
    the score fell) and tasks: what the loss is the mean of."""
    import pandas as pd

    from scalpel.errors import UserError

    scores, answers = results.scores(), results.answers()
    of_base = scores["run"].map(_is_base)
    if not of_base.any() or of_base.all():
        raise UserError("frontier: it shows runs against the base model; leave `runs` empty or name some.")
    bases = {name: found.set_index("task")["value"].to_dict() for name, found in scores[of_base].groupby("run")}
    for run in scores[~of_base]["run"].unique():
        if (base := _base_of(run)) not in bases:
            raise UserError(f"frontier: {run} is compared with {base}, which is not shown; name it in `runs`.")
    asked = [task for task in next(iter(bases.values())) if all(task in base for base in bases.values())]
    kept = [task for task in options.kept if task in asked]
    gain = [task for task in options.gain if task in asked]
    if not kept or not gain:
        raise UserError(
            f"frontier: `gain` or `kept` names none of the tasks asked, which are {', '.join(asked)}; "
            "name some of them."
        )
    scores = results.placed(scores[~of_base])
    errors = _paired_errors(answers)
    rows = []
    for (run, seed, step, checkpoint), found in scores.groupby(["run", "seed", "step", "checkpoint"], sort=False):
        values, base = found.set_index("task")["value"].to_dict(), bases[_base_of(run)]
        if not all(task in values for task in (*kept, *gain)):
            continue  # tasks that were asked of fewer checkpoints
        row = {"run": run, "seed": seed, "step": step, "checkpoint": checkpoint}
        for name, tasks, sign in (("gain", gain, 1), ("loss", kept, -1)):
            differences = [values[task] - base[task] for task in tasks]
            row[name] = sign * math.fsum(differences) / len(tasks)
            variances = [errors[run, seed, step, task] ** 2 for task in tasks]
            row[f"{name}_stderr"] = math.sqrt(math.fsum(variances)) / len(tasks)
        rows.append(row | {"tasks": " ".join(kept)})
    return pd.DataFrame(rows)


def _is_base(run: str) -> bool:
    return run.rpartition("/")[2] == BASE


def _base_of(run: str) -> str:
    """The base model of the study whose run it is: another study's run is called <study>/<run>."""
    owner = run.rpartition("/")[0]
    return f"{owner}/{BASE}" if owner else BASE


def _paired_errors(answers: pd.DataFrame) -> dict[tuple, float]:
    """(run, seed, step, task) -> standard error of the mean difference from its base model over questions."""
    from scalpel.exhibits.uncertainty import binomial_error

    of_base = answers["run"].map(_is_base)
    base = answers[of_base].set_index(["run", "task", "question"])["score"].rename("base")
    others = answers[~of_base].assign(of=lambda frame: frame["run"].map(_base_of))
    joined = others.join(base, on=["of", "task", "question"], how="inner")
    joined["difference"] = joined["score"] - joined["base"]
    errors = {}
    for key, differences in joined.groupby(["run", "seed", "step", "task"], sort=False)["difference"]:
        error = differences.sem()
        # Nobody's difference is certain because a small set of questions happened to be answered alike.
        errors[key] = error if error > 0 else binomial_error(0.0, len(differences))
    return errors


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """Means over seeds; the last checkpoint is large and has whiskers of one standard error."""
    from scalpel.exhibits.results import task_name
    from scalpel.exhibits.uncertainty import joined

    figure = style.figure(6.4, 4.6, "What is gained, and what it costs")
    axes = figure.subplots()
    means = {}
    for name in ("gain", "loss"):
        of = joined(frame.rename(columns={f"{name}_stderr": "error"}), ["run", "checkpoint"], name, "error")
        means[name] = of.set_index(["run", "checkpoint"])
    for run in [run for run in style.runs if run in set(frame["run"])]:
        gain, loss = (100 * means[name].loc[run].sort_index() for name in ("gain", "loss"))
        color, marker = style.colors[run], style.markers[run]
        axes.plot(
            [0, *loss["loss"]], [0, *gain["gain"]], color=color, marker=marker, markersize=2.5, linewidth=1, alpha=0.75
        )
        axes.errorbar(
            loss["loss"].iloc[-1], gain["gain"].iloc[-1], xerr=loss["stderr"].iloc[-1], yerr=gain["stderr"].iloc[-1],
            color=color, marker=marker, markersize=7, elinewidth=0.8, capsize=2, zorder=3,
        )  # fmt: skip
    axes.axhline(0, color="#909090", linewidth=0.8)
    axes.axvline(0, color="#909090", linewidth=0.8)
    tasks = [task_name(task) for task in frame["tasks"].iloc[0].split()]
    axes.set_xlabel(style.wrapped(f"loss of {', '.join(tasks)} (points, mean)", 45))
    axes.set_ylabel(f"gain on {', '.join(map(task_name, options.gain))} (points)")
    style.runs = [run for run in style.runs if not _is_base(run)]
    style.legend(figure, loc="outside right center")
    return figure
