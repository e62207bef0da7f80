"""Rival explanations of forgetting, side by side: how well each predicts it for a run it has not seen.

Forgetting of a checkpoint: the mean over the tasks `kept` of base score - score. Predictors: each measure of KL(base ||
checkpoint) of the study (the first is the trained task's; any other is KL elsewhere), the mean relative weight change
over matrices, the share of all entries unchanged as stored and in bfloat16, the mean spectral drift, and tokens read
and written (axis `tokens`). All are compared on the same checkpoints: those at which each of them is known.

Forgetting is fitted by a polynomial in one predictor (`degree` 2: RL's Razor, arXiv 2509.04259, finds it quadratic in
KL). Checkpoints of a run are not independent, so a run is left out with all its seeds and checkpoints, the fit made of
the others, and asked what the run left out forgets:

    R2 = 1 - sum_i w_i (y_i - fit_without_run(i) (x_i))^2 / sum_i w_i (y_i - mean_without_run(i))^2

with w_i = 1 / (number of the run's checkpoints), in the fit and in the means, too, so that each run counts once. 1: it
is foretold. 0: no better than the mean of the other runs; below 0: worse than that. A fit says nothing beyond the
points it is made of, so x is clipped to their range.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from scalpel.config.types import BASE, Name
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("evaluate", "kl", "weight_change", "structure")
PANELS = 4  # in a row
LEAST = 3  # runs: one left out and two to fit


class Options(ExhibitOptions):
    kept: tuple[Name, ...] = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")  # tasks whose loss is forgetting
    degree: Annotated[int, Field(ge=1, le=3)] = 2
    tokens: bool = True  # false: tokens are no predictor; of runs that do not say how many they saw
    spread: Literal["linear", "log"] = "linear"  # of the x axes; the fits are in the predictor itself


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row for each checkpoint and predictor: run, seed, step, predictor, x, forgetting, left_out (what the fit to the
    other runs says), and r2, runs and checkpoints of the predictor as a whole."""
    import pandas as pd

    from scalpel.errors import UserError

    y = _forgetting(results, options)
    predictors = _predictors(results, options)
    common = y.to_frame().join(pd.concat(predictors, axis=1, join="inner"), how="inner").dropna()
    runs = common.index.get_level_values("run")
    if runs.nunique() < LEAST:
        raise UserError(
            f"rivals: {runs.nunique()} of its runs have forgetting and every predictor at one checkpoint; show "
            f"{LEAST} at least."
        )
    rows = []
    for name in predictors:
        x, forgetting = common[name].to_numpy(), common["forgetting"].to_numpy()
        left_out, r2 = leave_one_run_out(x, forgetting, list(runs), options.degree)
        rows.append(
            common.index.to_frame(index=False).assign(
                predictor=name, x=x, forgetting=forgetting, left_out=left_out, r2=r2, runs=runs.nunique(),
                checkpoints=len(common),
            )
        )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def _forgetting(results: Results, options: Options) -> pd.Series:
    """Series by (run, seed, step)."""
    from scalpel.errors import UserError

    scores = results.scores()
    base = scores[scores["run"] == BASE].set_index("task")["value"]
    kept = [task for task in options.kept if task in base.index]
    if not kept or set(scores["run"]) == {BASE}:
        raise UserError(
            "rivals: forgetting is loss against the base model on the tasks `kept`; leave `runs` empty or name base "
            f"among them, and name tasks of {', '.join(base.index) or 'its own'}."
        )
    wide = scores[scores["run"] != BASE].pivot(index=["run", "seed", "step"], columns="task", values="value")
    return (base[kept] - wide.reindex(columns=kept)).mean(axis=1, skipna=False).rename("forgetting")


def _predictors(results: Results, options: Options) -> dict[str, pd.Series]:
    """Name in the panel -> series by (run, seed, step)."""
    import pandas as pd

    from scalpel.exhibits import axis

    of = ["run", "seed", "step"]
    against_base = results.compared("base")
    found = {}
    if against_base.of("kl"):
        frame = against_base.kl()
        for measure, part in frame.groupby("part", sort=False):
            found[f"KL on {measure} (nats)"] = part.set_index(of)["kl"]
    if against_base.of("weight_change"):
        found["relative weight change"] = against_base.weight_change().groupby(of)["relative"].mean()
    if against_base.of("structure"):
        frame = against_base.structure()
        for name, column in (("as stored", "unchanged"), ("in bfloat16", "unchanged_bf16")):
            weighted = frame.assign(held=frame[column] * frame["entries"]).groupby(of)[["held", "entries"]].sum()
            found[f"entries unchanged {name}"] = weighted["held"] / weighted["entries"]
        found["spectral drift"] = frame.groupby(of)["spectral_drift"].mean()
    if options.tokens and found:
        places = axis.places(results.found, "tokens")
        index = next(iter(found.values())).index
        found["tokens read and written"] = pd.Series([places(*key) for key in index], index=index)
    return {name: series.rename(name) for name, series in found.items()}


# ---------------------------------------------------------------- the fit


def fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, degree: int) -> Callable[[np.ndarray], np.ndarray]:
    """Weighted least squares polynomial of this degree, as a function that clips to the range of x."""
    import numpy as np

    low, high = x.min(), x.max()
    width = high - low or 1.0
    root = np.sqrt(weights)
    powers = np.vander((x - low) / width, degree + 1)
    coefficients, *_ = np.linalg.lstsq(powers * root[:, None], y * root, rcond=None)
    return lambda at: np.vander((np.clip(at, low, high) - low) / width, degree + 1) @ coefficients


def weights_of(runs: list[str]) -> np.ndarray:
    """1 / (number of the run's points), for each point."""
    import numpy as np

    return np.array([1 / runs.count(run) for run in runs])


def leave_one_run_out(x: np.ndarray, y: np.ndarray, runs: list[str], degree: int) -> tuple[np.ndarray, float]:
    """(what the other runs' fit says of each point, R2 as the module's text has it; nan where nothing varies)."""
    import numpy as np

    weights, whose = weights_of(runs), np.array(runs)
    said, means = np.empty(len(y)), np.empty(len(y))
    for run in dict.fromkeys(runs):
        out = whose == run
        said[out] = fit(x[~out], y[~out], weights[~out], degree)(x[out])
        means[out] = np.average(y[~out], weights=weights[~out])
    total = np.sum(weights * (y - means) ** 2)
    return said, 1 - np.sum(weights * (y - said) ** 2) / total if total else float("nan")


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """A panel per predictor, best one first: its checkpoints, the fit to all runs, and R2 with runs left out."""
    import numpy as np
    from matplotlib.ticker import EngFormatter, MaxNLocator

    from scalpel.exhibits.results import task_name

    first = frame.drop_duplicates("predictor").sort_values("r2", ascending=False, kind="stable")
    columns = style.in_a_row(min(len(first), PANELS))
    rows = -(-len(first) // columns)
    figure = style.figure(2.9 * columns + 0.4, 1.4 + 2.8 * rows, "What predicts forgetting in a run left out")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (name, r2) in zip(panels, first[["predictor", "r2"]].itertuples(index=False, name=None), strict=False):
        part = frame[frame["predictor"] == name]
        for run, points in part.groupby("run", sort=False):
            axes.plot(
                points["x"], 100 * points["forgetting"], linestyle="", marker=style.markers[run], markersize=3,
                color=style.colors[run], alpha=0.8,
            )  # fmt: skip
        x, y = part["x"].to_numpy(), part["forgetting"].to_numpy()
        grid = np.linspace(x.min(), x.max(), 200)
        axes.plot(grid, 100 * fit(x, y, weights_of(list(part["run"])), options.degree)(grid), color="#303030")
        axes.set_title(rf"$R^2$ = {r2:.2f}")
        if options.spread == "log" and x.min() > 0:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(style.wrapped(re.sub(r"(?<=^KL on )\S+", lambda task: task_name(task[0]), name)))
        if x.max() >= 10**4:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in panels[:: columns or 1]:
        axes.set_ylabel(style.wrapped("forgetting (points)"))
    for axes in panels[len(first) :]:
        axes.set_visible(False)
    shown = set(frame["run"])
    style.runs = [run for run in style.runs if run in shown]
    style.legend(figure, loc="outside lower center", ncols=min(len(style.runs), 5))
    return figure
