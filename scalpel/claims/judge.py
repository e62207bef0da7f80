"""Claims as tests on numbers: each can come out either way, on our results and on published ones.

A difference of scores counts when it exceeds `SIGMAS` standard errors of the difference (both runs' errors added in
quadrature; the questions are the same, so this is on the careful side). Within that, the verdict is "cannot be tested
here": too few questions or seeds to tell. Thresholds stand beside each test in its text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

APPEARS, ABSENT, UNTESTABLE = "appears", "does not appear", "cannot be tested here"
SIGMAS = 2.0


class Score(NamedTuple):
    """A benchmark score between 0 and 1, or a difference of two, and its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Evidence:
    """What a study measured, by run, with seeds joined. Missing runs or tasks make a claim untestable, not wrong."""

    scores: dict[str, dict[str, Score]] = field(default_factory=dict)  # run -> task -> final score
    kl: dict[str, dict[float, float]] = field(default_factory=dict)  # run -> step -> KL over all positions, nats
    change: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # run -> projection -> layers, final
    log: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # run -> column -> optimizer steps


class Outcome(NamedTuple):
    verdict: str
    measured: str  # the numbers, and why when untestable


class Lacking(Exception):
    """Evidence that a claim needs is not there; the message says which."""


class Claim(NamedTuple):
    text: str
    section: str
    test: str  # formula and threshold
    judge: Callable[[Evidence], Outcome]

    def outcome(self, evidence: Evidence) -> Outcome:
        try:
            return self.judge(evidence)
        except Lacking as lacking:
            return Outcome(UNTESTABLE, f"{lacking}.")


# ---------------------------------------------------------------- scores


def score(evidence: Evidence, run: str, task: str) -> Score:
    if run not in evidence.scores:
        raise Lacking(f"run {run} was not evaluated")
    if task not in evidence.scores[run]:
        raise Lacking(f"benchmark {task} is not part of this scale")
    found = evidence.scores[run][task]
    if not math.isfinite(found.value) or not math.isfinite(found.stderr):
        raise Lacking(f"the score of {run} on {task} is not a number")
    return found


def difference(evidence: Evidence, run: str, other: str, tasks: Sequence[str]) -> Score:
    """Mean over those of `tasks` that both runs have of score(run) - score(other), with its standard error."""
    common = [task for task in tasks if task in evidence.scores.get(run, {}) and task in evidence.scores.get(other, {})]
    if not common:
        raise Lacking(f"{run} and {other} have none of {', '.join(tasks)} in common")
    pairs = [(score(evidence, run, task), score(evidence, other, task)) for task in common]
    mean = statistics.fmean(a.value - b.value for a, b in pairs)
    return Score(mean, math.sqrt(sum(a.stderr**2 + b.stderr**2 for a, b in pairs)) / len(pairs))


def sign(found: Score) -> int:
    """1 or -1 when a difference exceeds SIGMAS standard errors, else 0."""
    if abs(found.value) <= SIGMAS * found.stderr or found.value == 0:
        return 0
    return 1 if found.value > 0 else -1


def points(found: Score) -> str:
    return f"{100 * found.value:+.1f} ± {100 * found.stderr:.1f} points"


def expect_positive(found: Score, what: str) -> Outcome:
    """Appears when the difference is above zero beyond its error, absent when below, else too noisy to tell."""
    verdict = {1: APPEARS, -1: ABSENT, 0: UNTESTABLE}[sign(found)]
    noise = f"; within {SIGMAS:g} standard errors, so it cannot be told from noise" if not sign(found) else ""
    return Outcome(verdict, f"{what} {points(found)}{noise}.")


def both(*outcomes: Outcome) -> Outcome:
    """Absent when any part is, untestable when any part is, appears when all do."""
    verdicts = [outcome.verdict for outcome in outcomes]
    worst = ABSENT if ABSENT in verdicts else UNTESTABLE if UNTESTABLE in verdicts else APPEARS
    return Outcome(worst, " ".join(outcome.measured for outcome in outcomes))


# ---------------------------------------------------------------- weight change


def changes(evidence: Evidence, run: str) -> dict[str, list[float]]:
    """Projection -> relative change of each layer; Lacking where nothing was measured or nothing changed."""
    found = {projection: layers for projection, layers in evidence.change.get(run, {}).items() if layers}
    if not found:
        raise Lacking(f"the weight change of {run} was not measured")
    values = [value for layers in found.values() for value in layers]
    if not all(map(math.isfinite, values)):
        raise Lacking(f"a weight change of {run} is not a number")
    if not any(values):
        raise Lacking(f"{run} changed no weight")
    return found


def type_means(change: dict[str, list[float]]) -> dict[str, float]:
    """Projection -> mean over layers."""
    return {projection: statistics.fmean(layers) for projection, layers in change.items()}


def middle_over_early(evidence: Evidence, run: str, projections: Sequence[str]) -> float:
    """Mean change in the middle half of the layers over that in the first quarter."""
    change = changes(evidence, run)
    missing = [projection for projection in projections if projection not in change]
    if missing:
        raise Lacking(f"the change of {missing[0]} of {run} was not measured")
    count = len(change[projections[0]])
    if count < 4:
        raise Lacking(f"{count} layers have no middle half")
    quarter = count // 4
    middle = [value for p in projections for value in change[p][quarter : count - quarter]]
    early = [value for p in projections for value in change[p][:quarter]]
    if not any(early):
        raise Lacking(f"{run} changed none of {', '.join(projections)} in the first quarter of the layers")
    return statistics.fmean(middle) / statistics.fmean(early)


# ---------------------------------------------------------------- curves


def kl_growth(evidence: Evidence, run: str) -> tuple[float, float]:
    """(KL of the last checkpoint, share of it reached after a quarter of the steps)."""
    if len(evidence.kl.get(run, {})) < 4:
        raise Lacking(f"the KL of {run} was not measured at four checkpoints or more")
    curve = evidence.kl[run]
    if not all(map(math.isfinite, curve.values())):
        raise Lacking(f"a KL of {run} is not a number")
    last = max(curve)
    early = min(step for step in curve if step >= last / 4)
    if curve[last] <= 0:
        raise Lacking(f"the KL of {run} is zero at the end: it did not train")
    return curve[last], curve[early] / curve[last]


def logged(evidence: Evidence, run: str, column: str) -> list[float]:
    """A column of the training log by optimizer step, steps without a number left out; Lacking below ten."""
    values = [value for value in evidence.log.get(run, {}).get(column, []) if math.isfinite(value)]
    if len(values) < 10:
        raise Lacking(f"the training log of {run} has fewer than ten steps of {column}")
    return values


def tenths(evidence: Evidence, run: str, column: str) -> tuple[float, float]:
    """Means of a logged column over the first and the last tenth of the steps."""
    values = logged(evidence, run, column)
    count = len(values) // 10
    return statistics.fmean(values[:count]), statistics.fmean(values[-count:])
