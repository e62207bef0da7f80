"""How much a framework's bugs would have moved the answer: runs with them beside the same without, at last checkpoints.

Every run stands against the base model, against itself without bugs, against the whole recipe without bugs (`against`),
and against the best mixed-policy method: of `rivals` the one that gains most here, the same for every row. It is chosen
by the scores that it is compared by, which favours it a little. Differences are means over tasks, taken question by
question, with 95% intervals over questions and, where a run has several, seeds (scalpel/claims/estimate.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from scalpel.config.load import nearest
from scalpel.config.types import BASE, Name, Reference
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.result import Result
    from scalpel.exhibits.results import Results

READS = ("train", "evaluate")
CODE = (
    "claims/estimate.py", "claims/evidence.py", "claims/judge.py",
    "exhibits/bugs.py", "exhibits/equal_budget.py", "exhibits/paper_table.py", "exhibits/rivals.py",
)  # fmt: skip


class Options(ExhibitOptions):
    gain: Annotated[tuple[Name, ...], Field(min_length=1)] = ("math_500",)  # tasks whose scores are to rise
    kept: tuple[Name, ...] = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")  # tasks whose scores are to stay
    right: Annotated[dict[Reference, tuple[Reference, ...]], Field(min_length=1)]  # run -> the same with bugs
    against: Reference  # the run without bugs that the question is about
    rivals: Annotated[tuple[Reference, ...], Field(min_length=1)]  # mixed-policy methods

    @model_validator(mode="after")
    def _shown(self) -> Options:
        arms = [run for right, faulty in self.right.items() for run in (right, *faulty)]
        for run in (*arms, self.against, *self.rivals) if self.runs else ():
            if run == BASE or run not in self.runs:
                raise ValueError(f"{run!r} is none of the runs shown{nearest(run, set(self.runs) - {BASE})}")
        return self


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row per arm, those without bugs before the same with them.

    Columns run, micro_batches (which reach SFT's optimizer), loss_mean (what its loss is a mean of), seeds; gain
    (points from the base model with intervals), the same minus the run without bugs, minus `against` (whole), and minus
    the best rival, whose name `best` holds; kept, and the same minus the run without bugs. A run minus itself is empty.
    """
    import pandas as pd

    from scalpel.claims.evidence import by_checkpoint
    from scalpel.errors import UserError
    from scalpel.exhibits.bugs import MEANS, REACHED
    from scalpel.exhibits.equal_budget import asked, difference

    tasks = asked(results.scores(), "bug_effect", gain=options.gain, kept=options.kept)
    found = by_checkpoint(results, [task for of in tasks.values() for task in of])
    last = {run: of_run[max(of_run)] for run, of_run in found.items()}
    arms = [run for right, faulty in options.right.items() for run in (right, *faulty)]
    for run in (BASE, *arms, options.against, *options.rivals):
        if run not in last:
            raise UserError(f"bug_effect: {run!r} is not among its evaluated runs, which are {', '.join(last)}.")
    gain, kept, base = tasks["gain"], tasks["kept"], last[BASE]
    best = max(options.rivals, key=lambda run: sum(last[run][task].mean for task in gain))
    seeds = {run: len({result.seed for result in results.of("evaluate") if result.run == run}) for run in last}
    rows = []
    for right, faulty in options.right.items():
        for run in (right, *faulty):
            reached, mean = how(next(result for result in results.of("train") if result.run == run))
            row = {"run": run, "micro_batches": REACHED[reached], "loss_mean": MEANS[mean], "seeds": str(seeds[run])}
            row["gain"] = difference(last[run], base, gain)
            row["gain − without bugs"] = "" if run == right else difference(last[run], last[right], gain)
            row["gain − whole"] = "" if run == options.against else difference(last[run], last[options.against], gain)
            row |= {"gain − best": difference(last[run], last[best], gain), "best": best}
            row["kept"] = difference(last[run], base, kept)
            row["kept − without bugs"] = "" if run == right else difference(last[run], last[right], kept)
            rows.append(row)
    return pd.DataFrame(rows)


def how(result: Result) -> tuple[str, str]:
    """(micro_batches, loss_mean) of the last SFT in a trained run's chain, itself included."""
    from scalpel.artifact.files import RECIPE, read_json

    for step in (result.step, *reversed(result.chain)):
        recipe = read_json(step / RECIPE)["recipe"]
        if recipe.get("method") == "sft":
            return recipe.get("micro_batches", "all"), recipe.get("loss_mean", "token")
    return "all", "token"
