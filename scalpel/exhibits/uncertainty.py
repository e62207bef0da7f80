"""Standard errors: of a score over questions, and of a mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalpel.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def question_error(value: float, stderr: float, questions: int) -> float:
    """Standard error of a score: the harness's `stderr`, or the binomial one where that is 0 or nan.

    (Nobody's score is certain because a small set of questions happened to be answered alike, or there was but one.)
    """
    return stderr if stderr > 0 else binomial_error(value, questions)


def binomial_error(value: float, questions: float) -> float:
    """Standard error of a share of `questions`; where all or none are right, that of one more right and one wrong."""
    if value in (0, 1):
        value, questions = (value * questions + 1) / (questions + 2), questions + 2
    return math.sqrt(value * (1 - value) / questions)


def standard_error(values: Sequence[float], stderrs: Sequence[float] | None = None) -> float:
    """Of the mean over seeds: sqrt(mean of stderr_i^2 + s^2 / n).

    values: one per seed; s is their standard deviation (n - 1 in the denominator). stderrs: each one's error over the
    questions. All seeds answer the same questions, so a mean over seeds does not lessen that part, and the sampling
    that both parts hold makes the whole a little too large rather than too small. With one seed it is the questions'
    error; without `stderrs` it is s / sqrt(n), and nan for one seed.
    """
    count = len(values)
    mean = math.fsum(values) / count
    between = math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count if count > 1 else 0.0
    if stderrs is None:
        return math.sqrt(between) if count > 1 else math.nan
    return math.sqrt(math.fsum(error**2 for error in stderrs) / count + between)


def joined(frame: pd.DataFrame, by: Sequence[str], value: str, stderr: str | None = None) -> pd.DataFrame:
    """One row for each `by`: its columns, `value` (mean over seeds), stderr (its standard error) and seeds (a count).

    A value that is nan for one seed makes the mean nan: no seed is left out. Raises UserError when a seed has several
    values for one `by`, as those are no mean over seeds.
    """
    import pandas as pd

    rows = []
    for key, group in frame.groupby(list(by), sort=False):
        if group["seed"].duplicated().any():
            what = ", ".join(f"{name} {part}" for name, part in zip(by, key, strict=True))
            raise UserError(f"{value}: there are several values of one seed for {what}, where one can be shown.")
        values = group[value].tolist()
        error = standard_error(values, group[stderr].tolist() if stderr else None)
        rows.append((*key, math.fsum(values) / len(values), error, len(values)))
    return pd.DataFrame(rows, columns=[*by, value, "stderr", "seeds"])
