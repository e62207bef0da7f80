"""Final benchmark scores with standard errors, beside the published ones, in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.options import ExhibitOptions
    from scalpel.exhibits.results import Results

READS = ("evaluate",)
PUBLISHED = ("benchmarks", "questions")


def table(results: Results, options: ExhibitOptions) -> pd.DataFrame:
    """A row per task and source (column `of`: here, published); columns <run> and <run> ±, its standard error.

    Ours: means over seeds (uncertainty.standard_error). Published: binomial errors, from the number of questions.
    """
    import pandas as pd

    from scalpel.exhibits.results import final, task_name, task_order
    from scalpel.exhibits.uncertainty import binomial_error, joined

    scores = joined(final(results.scores()), ["run", "task"], "value", "stderr")
    here = {(run, task): (value, error) for run, task, value, error, _ in scores.itertuples(index=False)}
    there = {
        (run, task): (value, binomial_error(value, results.published["questions"][task]))
        for run, found in results.published.get("benchmarks", {}).items()
        for task, value in found.items()
        if run in results.runs
    }
    rows = []
    for task in task_order(task for _, task in [*here, *there]):
        for source, found in (("here", here), ("published", there)):
            row: dict[str, str | float] = {"benchmark": task_name(task), "of": source}
            for run in results.runs:
                value, error = found.get((run, task), (float("nan"), float("nan")))
                row |= {run: 100 * value, f"{run} ±": 100 * error}
            if any((run, task) in found for run in results.runs):
                rows.append(row)
    return pd.DataFrame(rows)
