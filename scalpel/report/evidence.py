"""Evidence for the claims: measured, from result directories, and published, from workflow/published."""

import math
from pathlib import Path

from scalpel.figures import results
from scalpel.report.claims import Evidence, Score


def measured(inputs: dict[str, list[Path]]) -> Evidence:
    """Final scores, KL curves, final weight changes and training logs of all runs in `inputs`."""
    scores = {}
    for run in results.runs_of(inputs, "evaluate"):
        frame = results.final(results.scores(inputs[f"evaluate/{run}"]))
        columns = (frame["task"], frame["value"], frame["stderr"], frame["questions"])
        scores[run] = {
            task: Score(value, error if error > 0 else binomial_error(value, count))
            for task, value, error, count in zip(*columns, strict=True)
        }
    kl = {run: results.kl(inputs[f"kl/{run}"])["kl"].to_dict() for run in results.runs_of(inputs, "kl")}
    change = {}
    for run in results.runs_of(inputs, "weight_change"):
        last = results.final(results.weight_change(inputs[f"weight_change/{run}"])).sort_values("layer")
        change[run] = {p: list(layers) for p, layers in last.groupby("projection")["relative"]}
    log = {
        run: results.read(inputs[f"train/{run}"], "log.parquet").sort_values("step").to_dict("list")
        for run in results.runs_of(inputs, "train")
    }
    return Evidence(scores, kl, change, log)


def published(numbers: dict) -> Evidence:
    """The paper's own numbers; standard errors are binomial, from the sizes of the public test sets."""
    counts = numbers.get("questions", {})
    scores = {
        run: {task: Score(value, binomial_error(value, counts[task])) for task, value in found.items()}
        for run, found in numbers.get("benchmarks", {}).items()
    }
    kl = {run: dict(zip(curve["steps"], curve["values"], strict=True)) for run, curve in numbers.get("kl", {}).items()}
    return Evidence(scores, kl, numbers.get("weight_change", {}), {})


def binomial_error(value: float, questions: int) -> float:
    """Standard error of a share of `questions`; where all or none are right, that of one more right and one wrong.

    (Nobody's score is certain because a small set of questions happened to be answered alike.)
    """
    if value in (0, 1):
        value, questions = (value * questions + 1) / (questions + 2), questions + 2
    return math.sqrt(value * (1 - value) / questions)
