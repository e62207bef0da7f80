"""Evidence for claims: measured, from results, and published, from a file of workflow/published."""

from __future__ import annotations

from scalpel.claims.judge import Evidence, Score
from scalpel.exhibits.results import LOG, Results, final
from scalpel.exhibits.uncertainty import binomial_error, joined


def measured(results: Results) -> Evidence:
    """Final scores, KL curves, final weight changes and training logs of all runs, joined over seeds.

    Scores are means over seeds with uncertainty.standard_error; everything else is the mean over seeds. Seeds are
    paired by checkpoint or step. KL is the first measure's; KL and weight change are those from the base model.
    """
    return Evidence(_scores(results), _kl(results), _change(results), _log(results))


def _scores(results: Results) -> dict[str, dict[str, Score]]:
    found: dict[str, dict[str, Score]] = {}
    if results.of("evaluate"):
        means = joined(final(results.scores()), ["run", "task"], "value", "stderr")
        for run, task, value, error, _ in means.itertuples(index=False):
            found.setdefault(run, {})[task] = Score(value, error)
    return found


def _kl(results: Results) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {}
    measures = [result.part for result in results.of("kl")]
    first = results.only(lambda r: r.stage == "kl" and r.reference == "base" and r.part == measures[0])
    if first.found:
        means = joined(first.placed(first.kl()), ["run", "checkpoint", "x"], "kl")
        for run, _, step, value, *_ in means.itertuples(index=False):
            found.setdefault(run, {})[step] = value
    return found


def _change(results: Results) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    ours = results.only(lambda r: r.stage == "weight_change" and r.reference == "base")
    if ours.found:
        means = joined(final(ours.weight_change()), ["run", "projection", "layer"], "relative").sort_values("layer")
        for run, projection, _, value, *_ in means.itertuples(index=False):
            found.setdefault(run, {}).setdefault(projection, []).append(value)
    return found


def _log(results: Results) -> dict[str, dict[str, list[float]]]:
    """Runs made elsewhere may have no log, and each method logs columns of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    logs = results.only(lambda r: r.stage in ("train", "given") and (r.step / LOG).is_file())
    if logs.found:
        means = logs.placed(logs.log()).groupby(["run", "checkpoint"], sort=True).mean(numeric_only=True, skipna=False)
        for run, steps in means.groupby("run"):
            found[run] = steps.dropna(axis="columns", how="all").to_dict("list")
    return found


def published(numbers: dict) -> Evidence:
    """A paper's own numbers; standard errors are binomial, from the sizes of the public test sets."""
    counts = numbers.get("questions", {})
    scores = {
        run: {task: Score(value, binomial_error(value, counts[task])) for task, value in found.items()}
        for run, found in numbers.get("benchmarks", {}).items()
    }
    kl = {run: dict(zip(curve["steps"], curve["values"], strict=True)) for run, curve in numbers.get("kl", {}).items()}
    return Evidence(scores, kl, numbers.get("weight_change", {}), {})
