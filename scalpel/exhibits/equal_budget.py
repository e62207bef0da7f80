"""Who wins at equal expense: every run at its last checkpoint within what named runs spent in all.

Tasks are those asked of every evaluated checkpoint. Each budget is a block of the table. A run that has no checkpoint
within it is said to have none, and one that ended earlier stands at its end, with what it spent beside it. Nothing is
interpolated between checkpoints.

Differences from the base model, from the first run shown, and from the run whose budget it is, are means over tasks,
taken question by question, with 95% intervals over questions and, where a run has several, seeds
(scalpel/claims/estimate.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from scalpel.config.types import BASE, Name, Reference
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.results import Results

READS = ("train", "given", "evaluate")
CODE = ("claims/estimate.py", "claims/evidence.py", "claims/judge.py", "exhibits/rivals.py")
UNITS = {"questions": "questions", "flops": "FLOPs", "tokens": "tokens", "steps": "steps", "seconds": "seconds"}
WITHIN = 1 + 1e-9  # of a budget: sums of the same numbers in another order


class Options(ExhibitOptions):
    # Tasks whose scores are to rise, and tasks whose scores are to stay: means over those of them that are asked.
    gain: Annotated[tuple[Name, ...], Field(min_length=1)] = ("math_500",)
    kept: tuple[Name, ...] = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")
    budgets: Annotated[tuple[Literal["questions", "flops", "seconds", "tokens", "steps"], ...], Field(min_length=1)] = (
        "questions",
        "flops",
    )
    of: tuple[Reference, ...] = ()  # runs: the budgets are what each of them spent in all; empty: the first run shown

    @model_validator(mode="after")
    def _shown(self) -> Options:
        from scalpel.config.load import nearest

        for run in self.of if self.runs else ():
            if run == BASE or run not in self.runs:
                others = [name for name in self.runs if name != BASE]
                raise ValueError(f"of: {run!r} is none of the runs shown{nearest(run, others)}")
        return self


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row per budget and run. Columns budget, whose (budget it is), run, step, spent (at that checkpoint), gain and
    kept (points from the base model with intervals), and the same minus that of the first run and of the run whose
    budget it is. Where there is no checkpoint, `step` says why, and the others are empty."""
    import pandas as pd

    from scalpel.claims.evidence import by_checkpoint
    from scalpel.errors import UserError

    scores = results.scores()
    tasks = asked(of_every_checkpoint(scores), "equal_budget", gain=options.gain, kept=options.kept)
    found = by_checkpoint(results, [task for of in tasks.values() for task in of])
    if BASE not in found or len(found) < 2:
        raise UserError("equal_budget: it compares runs with the base model; leave `runs` empty or name some and base.")
    (base,) = found.pop(BASE).values()
    runs = [run for run in results.runs if run in found]
    named = options.of or (runs[0],)
    absent = [run for run in named if run not in runs]
    if absent:
        raise UserError(f"equal_budget: of: {absent[0]!r} is none of the runs shown, which are {', '.join(runs)}.")
    rows = []
    for budget in options.budgets:
        spent, why = _spent(results, scores, runs, budget)
        for limit, whose in _limits({run: spent[run] for run in named if run in spent}).items():
            at = {run: _last_within(spent[run], found[run], limit) for run in spent}
            for run in runs:
                row = {"budget": f"{_short(limit)} {UNITS[budget]}", "whose": " and ".join(whose), "run": run}
                number = at.get(run)
                if number is None:
                    least = min(spent[run][n][0] for n in found[run]) if run in spent else 0.0
                    rows.append(row | {"step": why.get(run, f"none within it: its first took {_short(least)}")})
                    continue
                x, step = spent[run][number]
                row |= {"step": str(step), "spent": _short(x)}
                others = {"first": runs[0], "whose": whose[0]}
                for name, of in tasks.items():
                    row[name] = difference(found[run][number], base, of)
                    for word, other in others.items():
                        there = at.get(other)
                        row[f"{name} − {word}"] = (
                            difference(found[run][number], found[other][there], of)
                            if run != other and there is not None
                            else ""
                        )
                rows.append(row)
        for run in named:
            if run not in spent:
                rows.append({"budget": UNITS[budget], "whose": run, "run": run, "step": why[run]})
    return pd.DataFrame(rows).fillna("")


def of_every_checkpoint(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of tasks that no run was asked at some of its evaluated checkpoints alone."""
    steps = scores.groupby(["run", "seed", "task"])["step"].nunique()
    fewer = steps[steps < steps.groupby(["run", "seed"]).transform("max")]
    return scores[~scores["task"].isin(fewer.index.get_level_values("task"))]


def asked(scores: pd.DataFrame, kind: str, **wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """Of each of `wanted`, the tasks that the base model was asked; UserError where there is none."""
    from scalpel.errors import UserError

    there = dict.fromkeys(scores[scores["run"] == BASE]["task"])
    found = {name: [task for task in tasks if task in there] for name, tasks in wanted.items()}
    for name, tasks in found.items():
        if there and not tasks:
            raise UserError(f"{kind}: `{name}` names none of the tasks asked, which are {', '.join(there)}; name some.")
    return found


def _limits(spent: dict[str, dict[int, tuple]]) -> dict[float, list[str]]:
    """What each run spent in all, and which runs spent just that."""
    found: dict[float, list[str]] = {}
    for run, of_run in spent.items():
        end = max(x for x, _ in of_run.values())
        same = next((limit for limit in found if limit / WITHIN <= end <= limit * WITHIN), end)
        found.setdefault(same, []).append(run)
    return found


def _last_within(spent: dict[int, tuple], scored: dict[int, Any], limit: float) -> int | None:
    return max((number for number in scored if spent[number][0] <= limit * WITHIN), default=None)


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
