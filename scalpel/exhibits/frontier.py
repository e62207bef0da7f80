"""Gain on the trained task against loss of what was known before: one point a checkpoint, a path a run.

Both are differences from the base model, taken question by question, so that the errors are those of paired scores, by
the estimates that claims are judged by (scalpel/claims/estimate.py).
Runs of several studies stand together, each against its own study's base model.
"""

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

READS = ("evaluate",)
CODE = ("claims/estimate.py", "claims/evidence.py", "claims/judge.py", "exhibits/rivals.py")


class Options(ExhibitOptions):
    gain: Annotated[tuple[Name, ...], Field(min_length=1)] = ("math_500",)  # tasks whose scores are to rise
    kept: tuple[Name, ...] = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")  # tasks whose scores are to stay


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, checkpoint, gain and loss (shares of 1; loss is above zero when the score fell), each
    with <name>_stderr, this seed's standard error over questions, and <name>_mean_stderr, that of the mean over the
    run's seeds, over questions and seeds; and tasks: what the loss is the mean of."""
    import pandas as pd

    from scalpel.claims.estimate import linear, of_seed
    from scalpel.claims.evidence import by_checkpoint
    from scalpel.errors import UserError

    scores = results.scores()
    untrained = scores["run"].map(_is_base)
    if not untrained.any() or untrained.all():
        raise UserError("frontier: it shows runs against the base model; leave `runs` empty or name some.")
    bases = {name: set(found["task"]) for name, found in scores[untrained].groupby("run")}
    for run in scores[~untrained]["run"].unique():
        if (base := _base_of(run)) not in bases:
            raise UserError(f"frontier: {run} is compared with {base}, which is not shown; name it in `runs`.")
    asked = [task for task in dict.fromkeys(scores[untrained]["task"]) if all(task in base for base in bases.values())]
    kept = [task for task in options.kept if task in asked]
    gain = [task for task in options.gain if task in asked]
    if not kept or not gain:
        raise UserError(
            f"frontier: `gain` or `kept` names none of the tasks asked, which are {', '.join(asked)}; "
            "name some of them."
        )
    course = by_checkpoint(results, [*gain, *kept])
    steps = results.placed(scores).set_index(["run", "seed", "checkpoint"])["step"].to_dict()
    rows: list[dict] = []
    for run in [run for run in course if not _is_base(run)]:
        (of_base,) = course[_base_of(run)].values()
        for checkpoint, samples in course[run].items():
            of_mean: dict[str, float] = {}
            of_each: dict[int, dict[str, float]] = {}
            for name, tasks, sign in (("gain", gain, 1), ("loss", kept, -1)):
                pairs = [(samples[task], of_base[task]) for task in tasks]
                c = sign / len(tasks)
                of_mean[f"{name}_mean_stderr"] = linear([[(c, new), (-c, old)] for new, old in pairs]).stderr
                for seed in pairs[0][0].seeds:
                    alone = linear([[(c, of_seed(new, seed)), (-c, old)] for new, old in pairs])
                    of_each.setdefault(seed, {}).update({name: alone.value, f"{name}_stderr": alone.stderr})
            for seed, found in of_each.items():
                place = {"run": run, "seed": seed, "step": steps[run, seed, checkpoint], "checkpoint": checkpoint}
                rows.append(place | found | of_mean | {"tasks": " ".join(kept)})
    return pd.DataFrame(rows)


def _is_base(run: str) -> bool:
    return run.rpartition("/")[2] == BASE


def _base_of(run: str) -> str:
    """The base model of the study whose run it is: another study's run is called <study>/<run>."""
    owner = run.rpartition("/")[0]
    return f"{owner}/{BASE}" if owner else BASE


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """Means over seeds; the last checkpoint is large and has whiskers of one standard error."""
    from scalpel.exhibits.results import task_name

    figure = style.figure(6.4, 4.6, "What is gained, and what it costs")
    axes = figure.subplots()
    means = frame.groupby(["run", "checkpoint"])[["gain", "gain_mean_stderr", "loss", "loss_mean_stderr"]].mean()
    for run in [run for run in style.runs if run in set(frame["run"])]:
        path = 100 * means.loc[run].sort_index()
        last = path.iloc[-1]
        color, marker = style.colors[run], style.markers[run]
        axes.plot(
            [0, *path["loss"]], [0, *path["gain"]], color=color, marker=marker, markersize=2.5, linewidth=1, alpha=0.75
        )
        axes.errorbar(
            last["loss"], last["gain"], xerr=last["loss_mean_stderr"], yerr=last["gain_mean_stderr"],
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
