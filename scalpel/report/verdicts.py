"""The section on claims: each with its test, interval, margin and verdict, here and on published numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scalpel.claims.judge import (
    APPEARS,
    NO_DIFFERENCE,
    NOT_RUN,
    OPPOSITE,
    UNDECIDED,
    VERDICTS,
    Claim,
    Evidence,
    Outcome,
    outcomes,
)
from scalpel.config.study import Margins

MARKS = {APPEARS: "✓", OPPOSITE: "✗", NO_DIFFERENCE: "=", UNDECIDED: "?", NOT_RUN: "–"}


@dataclass(frozen=True)
class Verdict:
    """there: the outcome on published numbers; None where there are none for this test. caveats: on learning rates."""

    claim: Claim
    here: Outcome
    there: Outcome | None
    caveat: str = ""
    caveat_there: str = ""

    @property
    def mark(self) -> str:
        return MARKS[self.here.kind]

    @property
    def mark_there(self) -> str:
        return MARKS[self.there.kind] if self.there else ""

    @property
    def differ(self) -> bool:
        """Whether both columns decide, and otherwise."""
        return bool(self.there and self.here.decided and self.there.decided and self.here.kind != self.there.kind)


def verdicts(
    claims: Sequence[Claim],
    ours: Evidence,
    theirs: Evidence,
    margins: Margins,
    rates: Mapping[str, float],
    published_rates: Mapping[str, float],
    label: Callable[[str], str] = str,
) -> list[Verdict]:
    """rates, published_rates: run -> learning rate of its recipe."""
    found = []
    here, there = outcomes(claims, ours, margins), outcomes(claims, theirs, margins)
    for claim, mine, published in zip(claims, here, there, strict=True):
        of_paper = None if published.kind == NOT_RUN else published
        caveats = caveat(mine.runs, rates, label), caveat(published.runs, published_rates, label) if of_paper else ""
        found.append(Verdict(claim, mine, of_paper, *caveats))
    return found


def caveat(runs: Sequence[str], rates: Mapping[str, float], label: Callable[[str], str] = str) -> str:
    """What a comparison of runs with several learning rates must be read with; empty where there is one."""
    known = {run: rates[run] for run in runs if run in rates}
    if len(set(known.values())) < 2:
        return ""
    times = max(known.values()) / min(known.values())
    rates_in_words = ", ".join(f"{label(run)} {rate:.2g}" for run, rate in known.items())
    return f"Learning rates differ {times:.3g}-fold: {rates_in_words}."


def rates_of(runs: Mapping[str, dict]) -> dict[str, float]:
    """Run -> learning rate, from recipes; runs made elsewhere have none."""
    return {run: recipe["learning_rate"] for run, recipe in runs.items() if recipe.get("learning_rate")}


class Count(NamedTuple):
    verdict: str
    mark: str
    here: int
    there: int


def counts(found: Sequence[Verdict]) -> list[Count]:
    """How many claims came out each way, here and on published numbers."""
    here = [one.here.kind for one in found]
    there = [one.there.kind for one in found if one.there]
    return [Count(verdict, MARKS[verdict], here.count(verdict), there.count(verdict)) for verdict in VERDICTS]


def families(found: Sequence[Verdict]) -> list[tuple[str, int, int, list[Verdict]]]:
    """(family, claims tested here, claims tested on published numbers, its verdicts), in order."""
    whole = []
    for name in dict.fromkeys(one.claim.family for one in found):
        of = [one for one in found if one.claim.family == name]
        here = sum(one.here.p == one.here.p for one in of)
        there = sum(one.there is not None and one.there.p == one.there.p for one in of)
        whole.append((name, here, there, of))
    return whole
