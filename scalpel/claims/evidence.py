"""Evidence for claims: measured, from results, and published, from a file of workflow/published."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scalpel.claims.estimate import Sample
from scalpel.claims.judge import Evidence
from scalpel.config.types import BASE
from scalpel.errors import UserError
from scalpel.exhibits.results import LOG, Results
from scalpel.exhibits.uncertainty import binomial_error

if TYPE_CHECKING:
    import pandas as pd

LOGGED = ("accuracy_reward", "format_reward", "loss", "grad_norm", "flops", "questions", "completion_length")
UNBOUNDED = ("spectral_drift", "angle")
STRUCTURE = ("unchanged", "unchanged_bf16", "spectral_drift", "rank", "overlap", "angle")


def measured(results: Results, rivals: Collection[str] = ()) -> Evidence:
    """Scores of all checkpoints by question, KL by question, weight change and structure by layer, training logs.

    Seeds are paired by checkpoint. KL is the first measure's; KL, weight change and structure are those from the base
    model. What a study does not have is left out. rivals: the runs that predictors of forgetting are compared on;
    empty: all.
    """
    course = {run: list(checkpoints.values()) for run, checkpoints in by_checkpoint(results).items()}
    return Evidence(
        {run: checkpoints[-1] for run, checkpoints in course.items()}, course, _kl(results), _change(results),
        _log(results), _structure(results), _trace(results),
        _rivals(results.only(lambda result: not rivals or result.run in rivals)),
    )  # fmt: skip


def _samples(frame: pd.DataFrame, by: list[str], unit: str, value: str, what: str, **more: Any) -> Iterator[tuple]:
    """(key, Sample) for each `by`, whose first is the run: a row per seed, a column per unit that all seeds have."""
    import numpy as np

    frame = frame.sort_values([*by, "seed", unit], kind="stable")
    group = frame.groupby(by, sort=False).ngroup().to_numpy()
    seeds, names, values = frame["seed"].to_numpy(), frame[unit].to_numpy(), frame[value].to_numpy(float)
    keys = list(frame[by].drop_duplicates().itertuples(index=False, name=None))
    for key, place in zip(keys, np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1), strict=True):
        starts = place[np.flatnonzero(np.diff(seeds[place], prepend=np.nan) != 0)]
        rows = np.split(place, starts - place[0])[1:]
        if all(np.array_equal(names[row], names[rows[0]]) for row in rows):
            shared, units = names[rows[0]].tolist(), np.stack([values[row] for row in rows])
        else:
            found = [dict(zip(names[row].tolist(), values[row], strict=True)) for row in rows]
            shared = [name for name in found[0] if all(name in row for row in found)]
            units = np.array([[row[name] for name in shared] for row in found])
        means = units.mean(axis=1) if shared else np.full(len(rows), math.nan)
        of_seeds = tuple(map(int, seeds[starts]))
        about: dict[str, Any] = {"what": what, "trained": not _is_base(key[0])} | more
        yield key, Sample(key[0], of_seeds, means, units, tuple(shared), **about)


def _is_base(run: str) -> bool:
    """Another study's base model is called <study>/base."""
    return run.rpartition("/")[2] == BASE


def by_checkpoint(results: Results, needed: Collection[str] = ()) -> dict[str, dict[int, dict[str, Sample]]]:
    """Run -> checkpoint (Results.placed) -> task -> score of every question; of checkpoints that were asked all tasks
    `needed`, or, empty, most tasks."""
    import numpy as np

    if not results.of("evaluate"):
        return {}
    scores = results.placed(results.scores())
    answers = results.answers().merge(scores[["run", "seed", "step", "task", "checkpoint"]])
    by = ["run", "checkpoint", "task"]
    values: dict[tuple, dict[int, float]] = {}
    for run, checkpoint, task, seed, value in scores[[*by, "seed", "value"]].itertuples(index=False):
        values.setdefault((run, checkpoint, task), {})[seed] = value
    draws = answers.groupby(by)["draws"].min().to_dict()
    strata = _strata(answers)
    found: dict[str, dict[int, dict[str, Sample]]] = {}
    for key, sample in _samples(answers, by, "question", "score", "questions", share=True):
        whole = np.array([values[key][seed] for seed in sample.seeds])
        of = tuple(strata[key[2]][name] for name in sample.names) if key[2] in strata else ()
        sample = replace(sample, values=whole, draws=int(draws[key]), strata=of)
        found.setdefault(key[0], {}).setdefault(key[1], {})[key[2]] = sample
    most = {run: max(map(len, of_run.values())) for run, of_run in found.items()}
    complete = {
        run: {n: of for n, of in sorted(of_run.items()) if (set(needed) <= set(of) if needed else len(of) == most[run])}
        for run, of_run in found.items()
    }
    return {run: of_run for run, of_run in complete.items() if of_run}


def _strata(answers: pd.DataFrame) -> dict[str, dict[int, str]]:
    """Task -> question -> group, of tasks whose score is the mean over several groups (MMLU's subjects)."""
    found = answers[["task", "question", "group"]].drop_duplicates(["task", "question"])
    groups = {task: dict(zip(of["question"], of["group"], strict=True)) for task, of in found.groupby("task")}
    return {task: of for task, of in groups.items() if len(set(of.values())) > 1}


def _kl(results: Results) -> dict[str, dict[float, Sample]]:
    measures = [result.part for result in results.of("kl")]
    first = results.only(lambda r: r.stage == "kl" and r.reference == BASE and r.part == measures[0])
    if not first.found:
        return {}
    frame = first.placed(first.read("kl", "kl.parquet", ["step", "question", "kl"]))
    found: dict[str, dict[float, Sample]] = {}
    for (run, _, x), sample in _samples(frame, ["run", "checkpoint", "x"], "question", "kl", "questions"):
        found.setdefault(run, {})[x] = sample
    return found


def _change(results: Results) -> dict[str, dict[str, Sample]]:
    ours = results.only(lambda r: r.stage == "weight_change" and r.reference == BASE)
    if not ours.found:
        return {}
    found: dict[str, dict[str, Sample]] = {}
    frame = _last(ours.weight_change())
    for (run, projection), sample in _samples(frame, ["run", "projection"], "layer", "relative", "layers"):
        found.setdefault(run, {})[projection] = sample
    return found


def _log(results: Results) -> dict[str, dict[str, Sample]]:
    """Runs made elsewhere may have no log, and each method logs columns of its own."""
    logs = results.only(lambda r: r.stage in ("train", "given") and (r.step / LOG).is_file())
    if not logs.found:
        return {}
    import numpy as np

    found: dict[str, dict[str, Sample]] = {}
    whole = logs.log()
    for name in LOGGED:
        if name in whole:
            for (run,), sample in _samples(whole[["run", "seed", "step", name]], ["run"], "step", name, "steps"):
                if np.isfinite(sample.units).any():
                    found.setdefault(run, {})[name] = sample
    return found


def _structure(results: Results) -> dict[str, dict[str, Sample]]:
    """Over layers: shares of entries weighted by matrices' entries, the rest means over matrices.

    overlap: what two seeds changed in common, less what unrelated sets of their sizes would have, as a share of what
    either changed, the mean of both, as exhibits/structure.py has it: a ratio of sums, linearised in the layers.
    """
    ours = results.only(lambda r: r.stage == "structure" and r.reference == BASE)
    if not ours.found:
        return {}
    frame = _last(ours.structure())
    frame["rank"] = frame["energy_rank"] / frame["full_rank"]
    frame["angle"] = frame[["angle_left", "angle_right"]].max(axis=1)
    for name in ("unchanged", "unchanged_bf16", "changed_bf16", "both_changed_bf16"):
        frame[name] = frame[name] * frame["entries"]
    frame["chance"] = frame["changed_bf16"] * frame["other_changed_bf16"]
    frame["other_changed_bf16"] *= frame["entries"]
    of = ["run", "seed", "layer"]
    summed = ["entries", "unchanged", "unchanged_bf16", "changed_bf16", "other_changed_bf16", "both_changed_bf16"]
    sums = frame.groupby(of)[[*summed, "chance"]].sum(min_count=1)
    layers = frame.groupby(of)[["rank", "angle", "spectral_drift"]].mean()
    for name in ("unchanged", "unchanged_bf16"):
        layers[name] = sums[name] / sums["entries"]
    common, layers["overlap"] = sums["both_changed_bf16"] - sums["chance"], 0.0
    for size in (sums["changed_bf16"], sums["other_changed_bf16"]):
        mean = size.groupby(["run", "seed"]).transform("mean")
        share = common.groupby(["run", "seed"]).transform("mean") / mean
        layers["overlap"] += (share + (common - share * size) / mean) / 2
    found: dict[str, dict[str, Sample]] = {}
    for name in STRUCTURE:
        known = layers[name].dropna().reset_index()  # a run's first seed overlaps with none
        for (run,), sample in _samples(known, ["run"], "layer", name, "layers", share=name not in UNBOUNDED):
            found.setdefault(run, {})[name] = sample
    return found


def _trace(results: Results) -> dict[tuple[str, str], list[tuple[float, float, int]]]:
    """(kind, position) -> (AIE, standard error over facts, how many) by layer, of the first trace."""
    if not results.of("trace"):
        return {}
    frame = results.read("trace", "aie.parquet", ["kind", "position", "layer", "aie", "stderr", "facts"])
    first = frame[(frame["run"] == frame["run"].iloc[0]) & (frame["seed"] == frame["seed"].iloc[0])]
    return {
        key: list(part.sort_values("layer")[["aie", "stderr", "facts"]].itertuples(index=False, name=None))
        for key, part in first.groupby(["kind", "position"])
    }


def _rivals(results: Results) -> dict[str, Sample]:
    """Predictor -> what its fit to the other runs misses of each run's forgetting: 1 - R2 is the mean over runs."""
    import numpy as np

    from scalpel.exhibits import rivals

    try:
        frame = rivals.table(results, rivals.Options(tokens=False))
    except UserError:  # too few runs, or none evaluated
        return {}
    runs = frame["run"].drop_duplicates().tolist()
    found = {}
    for name, part in frame.groupby("predictor", sort=False):
        y = part.groupby("run")["forgetting"].mean()
        missed = ((part["forgetting"] - part["left_out"]) ** 2).groupby(part["run"]).mean()
        means = {run: y.drop(run).mean() for run in runs}
        total = ((part["forgetting"] - part["run"].map(means)) ** 2).groupby(part["run"]).mean()
        if total.sum() > 0:
            units = (missed / total.sum() * len(runs)).reindex(runs).to_numpy()[None]
            found[name] = Sample(BASE, (0,), np.array([units.mean()]), units, tuple(runs), what="runs", trained=False)
    return found


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last step of each run and seed."""
    return frame[frame["step"] == frame.groupby(["run", "seed"])["step"].transform("max")].copy()


# ---------------------------------------------------------------- published


def published(numbers: Mapping, named: Mapping[str, str] | None = None) -> Evidence:
    """A paper's own numbers. named: our name of a run -> the file's, where it is another.

    Scores have binomial errors, from the sizes of the public test sets, unpaired. A published KL stands without any;
    the scatter between neighbouring checkpoints of the last quarter stands for it, which covers neither questions nor
    seeds. Weight change is by layer.
    """
    names = {theirs: ours for ours, theirs in (named or {}).items()}
    counts = numbers.get("questions", {})
    scores = {
        names.get(run, run): {
            task: _alone(
                names.get(run, run), value, binomial_error(value, counts[task]), "questions", size=counts[task]
            )
            for task, value in found.items()
        }
        for run, found in numbers.get("benchmarks", {}).items()
    }
    curves = {names.get(run, run): curve for run, curve in numbers.get("kl", {}).items()}
    kl = {run: _published_kl(run, curve) for run, curve in curves.items()}
    change = {
        names.get(run, run): {projection: _layers(names.get(run, run), values) for projection, values in of_run.items()}
        for run, of_run in numbers.get("weight_change", {}).items()
    }
    return Evidence(scores, {run: [tasks] for run, tasks in scores.items()}, kl, change)


def _alone(run: str, value: float, error: float, what: str, **more: Any) -> Sample:
    import numpy as np

    return Sample(run, (0,), np.array([float(value)]), None, (), error, what, trained=run != BASE, **more)


def _published_kl(run: str, curve: Mapping) -> dict[float, Sample]:
    values = curve["values"]
    last = values[-max(4, len(values) // 4) :]
    steps = [b - a for a, b in itertools.pairwise(last)]
    mean = math.fsum(steps) / len(steps) if steps else math.nan
    squares = math.fsum((step - mean) ** 2 for step in steps)
    scatter = math.sqrt(squares / (len(steps) - 1) / 2) if len(steps) > 1 else math.nan
    found = zip(curve["steps"], values, strict=True)
    return {step: _alone(run, value, scatter, "scatter between checkpoints") for step, value in found}


def _layers(run: str, values: list[float]) -> Sample:
    import numpy as np

    units = np.array([values], dtype=float)
    return Sample(run, (0,), units.mean(axis=1), units, tuple(range(len(values))), what="layers")
