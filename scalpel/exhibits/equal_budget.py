"""Who wins at equal expense: every run at its last checkpoint within a budget that all of them have one in.

The budget is what the cheapest run spent in all, or more where another's first checkpoint takes more (a run that starts
from another's end); a run that ended earlier is shown at its end, with what it spent.

Differences from the base model, and from the first run shown, are taken question by question, with 95% intervals over
questions and, where a run has several, seeds (scalpel/claims/estimate.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from scalpel.config.types import BASE, Name
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.results import Results

READS = ("train", "given", "evaluate")
CODE = ("claims/estimate.py", "claims/evidence.py", "claims/judge.py", "exhibits/rivals.py")
UNITS = {"questions": "questions", "flops": "FLOPs", "tokens": "tokens", "steps": "steps", "seconds": "seconds"}


class Options(ExhibitOptions):
    gain: Annotated[tuple[Name, ...], Field(min_length=1)] = ("math_500",)  # tasks whose scores are to rise
    kept: tuple[Name, ...] = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")  # tasks whose scores are to stay
    budgets: Annotated[tuple[Literal["questions", "flops", "seconds", "tokens", "steps"], ...], Field(min_length=1)] = (
        "questions",
        "flops",
    )


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row per budget and run. Columns budget, run, step, spent (at that checkpoint), gain and kept (points from the
    base model with intervals), and the same minus the first run's."""
    import pandas as pd

    from scalpel.claims.evidence import by_checkpoint
    from scalpel.errors import UserError

    scores = results.scores()
    asked = dict.fromkeys(scores[scores["run"] == BASE]["task"])
    tasks = [[task for task in of if task in asked] for of in (options.gain, options.kept)]
    if asked and not all(tasks):
        raise UserError(
            f"equal_budget: `gain` or `kept` names none of the tasks asked, which are {', '.join(asked)}; name some."
        )
    found = by_checkpoint(results, [task for of in tasks for task in of])
    if not asked or len(found) < 2:
        raise UserError("equal_budget: it compares runs with the base model; leave `runs` empty or name some and base.")
    (base,) = found.pop(BASE).values()
    rows = []
    for budget in options.budgets:
        spent, why = _spent(results, scores, [run for run in results.runs if run in found], budget)
        ends = [max(of_run[number][0] for number in found[run]) for run, of_run in spent.items()]
        begins = [min(of_run[number][0] for number in found[run]) for run, of_run in spent.items()]
        limit = max(min(ends), max(begins)) if spent else 0.0
        within = {
            run: [number for number in found[run] if of_run[number][0] <= limit * (1 + 1e-9)]
            for run, of_run in spent.items()
        }
        first: Any = next(iter(spent), None)
        for run in [run for run in results.runs if run in found]:
            row = {"budget": f"{_short(limit)} {UNITS[budget]}", "run": run}
            if run in why:
                rows.append(row | {"step": why[run]})
                continue
            number = within[run][-1]
            x, step = spent[run][number]
            row |= {"step": str(step), "spent": _short(x)}
            for name, of in zip(("gain", "kept"), tasks, strict=True):
                row[name] = difference(found[run][number], base, of)
                if run != first:
                    row[f"{name} − first"] = difference(found[run][number], found[first][within[first][-1]], of)
            rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _short(amount: float) -> str:
    return f"{amount:,.0f}" if 100 <= amount < 1e6 else f"{amount:.3g}"


def _spent(
    results: Results, scores: pd.DataFrame, runs: list[str], budget: str
) -> tuple[dict[str, dict[int, tuple]], dict[str, str]]:
    """Run -> checkpoint -> (what was spent, step), and why other runs cannot be counted."""
    from scalpel.errors import UserError

    spent, why = {}, {}
    for run in runs:
        try:
            placed = results.placed(scores[scores["run"] == run], budget).drop_duplicates("checkpoint")
        except UserError as error:
            why[run] = str(error)
            continue
        spent[run] = {row.checkpoint: (row.x, row.step) for row in placed.itertuples()}
    return spent, why


def difference(a: dict, b: dict, tasks: list[str]) -> str:
    """Mean over tasks of score(a) - score(b) in points, as ``+1.2 [-3.4, +5.8]``; why not, where it cannot be had."""
    from scalpel.claims.estimate import Lacking, linear
    from scalpel.claims.judge import interval

    both = [task for task in tasks if task in a and task in b]
    if not both:
        return "not asked"
    try:
        return interval(linear([[(1 / len(both), a[task]), (-1 / len(both), b[task])] for task in both]))
    except Lacking as lacking:
        return str(lacking)
