"""The section on claims: each with its test, what was measured, and the verdicts here and on published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scalpel.claims.judge import ABSENT, APPEARS, UNTESTABLE, Claim, Evidence, Outcome

MARKS = {APPEARS: "✓", ABSENT: "✗", UNTESTABLE: "–"}


@dataclass(frozen=True)
class Verdict:
    """there: the outcome on published numbers; None where there are none for this test."""

    claim: Claim
    here: Outcome
    there: Outcome | None

    @property
    def mark(self) -> str:
        return MARKS[self.here.verdict]


def verdicts(claims: Sequence[Claim], ours: Evidence, theirs: Evidence) -> list[Verdict]:
    found = []
    for claim in claims:
        there = claim.outcome(theirs)
        lacking = there.verdict == UNTESTABLE and "±" not in there.measured
        found.append(Verdict(claim, claim.outcome(ours), None if lacking else there))
    return found


class Counts(NamedTuple):
    """How many claims came out each way here."""

    appear: int
    absent: int
    untestable: int


def counts(found: Sequence[Verdict]) -> Counts:
    here = [one.here.verdict for one in found]
    return Counts(here.count(APPEARS), here.count(ABSENT), here.count(UNTESTABLE))
