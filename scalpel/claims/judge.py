"""Claims as tests on numbers: each can come out either way, on our results and on published ones.

A claim is made of parts, each a difference that should lie above zero (or above `beyond`), under a limit, or within
its margin. Where the interval of a part lies decides it (docs/decisions.md). A claim appears when all its parts do;
the opposite appears when that of one part does. Claims of one family share its level by Holm's rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scalpel.claims.estimate import LEVEL, Estimate, Lacking, NotRun, Sample
from scalpel.config.study import Margins

APPEARS, OPPOSITE, NO_DIFFERENCE = "appears", "the opposite appears", "no difference larger than"
UNDECIDED, NOT_RUN = "undecided", "not run at this scale"
VERDICTS = (APPEARS, OPPOSITE, NO_DIFFERENCE, UNDECIDED, NOT_RUN)
POINTS, RATIO, PLAIN = "points", "ratio", "plain"  # how numbers of a part are written


@dataclass(frozen=True)
class Evidence:
    """What a study measured, or what was published, by run, with one row for each seed."""

    scores: dict[str, dict[str, Sample]] = field(default_factory=dict)  # run -> task -> final checkpoint
    course: dict[str, list[dict[str, Sample]]] = field(default_factory=dict)  # run -> checkpoints -> task
    kl: dict[str, dict[float, Sample]] = field(default_factory=dict)  # run -> step -> over all positions, nats
    change: dict[str, dict[str, Sample]] = field(default_factory=dict)  # run -> projection -> over layers, final
    log: dict[str, dict[str, Sample]] = field(default_factory=dict)  # run -> column -> over optimizer steps
    structure: dict[str, dict[str, Sample]] = field(default_factory=dict)  # run -> measure -> over layers, final
    # (kind, position) -> layers: the effect, its standard error, and over how many facts
    trace: dict[tuple[str, str], list[tuple[float, float, int]]] = field(default_factory=dict)
    rivals: dict[str, Sample] = field(default_factory=dict)  # predictor -> share of forgetting missed, over runs

    def first(self, *runs: str) -> str:
        """The first of these runs that anything was measured of; the first one where there is none."""
        measured = (self.scores, self.kl, self.change, self.log)
        return next((run for run in runs if any(run in found for found in measured)), runs[0])


class Part(NamedTuple):
    """One difference and what it should be.

    want: above (zero, or `beyond`; below zero is the opposite), over or under (the limit `beyond`), or same (within the
    margin). margin, beyond and the estimate are in one unit; ratios are logarithms.
    """

    what: str
    estimate: Estimate
    margin: float
    show: str = POINTS
    want: str = "above"
    beyond: float = 0.0
    note: str = ""
    tries: int = 1  # of how many this one was picked

    def ps(self) -> dict[str, float]:
        """One-sided p values: of this part's appearing, of its opposite, and of lying within the margin."""
        tail, value = self.estimate.tail, self.estimate.value
        within = max(tail(self.margin - value), tail(self.margin + value))
        if self.want == "above":
            found = {APPEARS: tail(value - self.beyond), OPPOSITE: tail(-value), NO_DIFFERENCE: within}
        elif self.want in ("over", "under"):
            side = 1 if self.want == "over" else -1
            past = side * (value - self.beyond)
            found = {APPEARS: tail(past), OPPOSITE: tail(-past), NO_DIFFERENCE: 1.0}
        else:
            outside = max(tail(value - self.margin), 0.0), max(tail(-value - self.margin), 0.0)
            found = {APPEARS: within, OPPOSITE: min(outside), NO_DIFFERENCE: 1.0}
        return {verdict: min(1.0, p * self.tries) for verdict, p in found.items()}

    def distances(self) -> tuple[float, float]:
        """(what is to be told from nothing, how far the value lies from the bound that decides it); 0: no matter."""
        value = abs(self.estimate.value)
        if self.want == "same":
            return self.margin, abs(value - self.margin)
        if self.want in ("over", "under") or self.beyond:
            return 0.0, abs(self.estimate.value - self.beyond)
        return self.margin, max(value, self.margin - value)

    def written(self, value: float, sign: bool = True) -> str:
        return written(value, self.show, sign)

    def text(self, level: float) -> str:
        """Value and interval at 1 - level."""
        estimate, width = self.estimate, self.estimate.half_width(level)
        if math.isfinite(width):
            low, high = self.written(estimate.value - width), self.written(estimate.value + width)
            found = f"{self.written(estimate.value)} [{low}, {high}]"
        else:
            found = f"{self.written(estimate.value)}, no error known"
        unit = " points" if self.show == POINTS else ""
        return f"{self.what}: {found}{unit}{f' ({self.note})' if self.note else ''}"


def written(value: float, show: str, sign: bool = True) -> str:
    """A number of a part: points, a factor, or plain."""
    if show == RATIO:
        factor = math.exp(min(max(value, -300), 300))
        return f"×{factor:.2f}" if 0.05 < factor < 1000 else f"×{factor:.2g}"
    mark = "+" if sign else ""
    return f"{100 * value:{mark}.1f}" if show == POINTS else f"{value:{mark}.3g}"


def interval(found: Estimate) -> str:
    """A difference of scores in points with its 95% interval: ``+12.3 [+4.5, +20.1]``."""
    width = found.half_width()
    value, low, high = (written(found.value + side * width, POINTS) for side in (0, -1, 1))
    return f"{value} [{low}, {high}]" if math.isfinite(width) else written(found.value, POINTS)


class Claim(NamedTuple):
    """judge: the parts; Lacking or NotRun when they cannot be had. mixed: some parts up and some down appear."""

    text: str
    place: str
    family: str
    test: str
    judge: Callable[[Evidence, Margins], Sequence[Part]]
    mixed: bool = False


class Outcome(NamedTuple):
    """kind: one of VERDICTS. verdict: the same with the margin in it. decides: what would, when undecided.

    p: by Holm's rule, two-sided; nan where nothing was tested. level: that of the intervals in `measured`.
    """

    kind: str
    verdict: str
    measured: str
    decides: str = ""
    p: float = math.nan
    level: float = LEVEL
    margins: str = ""
    runs: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        return self.kind in (APPEARS, OPPOSITE, NO_DIFFERENCE)


def holm(ps: Sequence[float]) -> list[tuple[float, int]]:
    """(adjusted p, by how much the level is divided) of each, by Holm's step-down rule.

    Adjusted: the k-th smallest of m times m - k + 1, never falling. The level is LEVEL / (m - k + 1) until the first
    that exceeds it, and stays there.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    found, largest, multiplier = [(1.0, 1)] * len(ps), 0.0, len(ps)
    for rank, place in enumerate(order):
        multiplier = len(ps) - rank if largest <= LEVEL else multiplier  # where it stops, the level stays
        largest = max(largest, min(1.0, ps[place] * (len(ps) - rank)))
        found[place] = largest, multiplier
    return found


def outcomes(claims: Sequence[Claim], evidence: Evidence, margins: Margins) -> list[Outcome]:
    """One for each claim; families are corrected among those of their claims that could be tested."""
    tested: dict[int, Sequence[Part]] = {}
    found: dict[int, Outcome] = {}
    for place, claim in enumerate(claims):
        try:
            parts = claim.judge(evidence, margins)
            bad = [part.what for part in parts if not math.isfinite(part.estimate.value)]
            if bad:
                raise Lacking(f"{bad[0]}: not a number")
            tested[place] = parts
        except NotRun as lacking:
            found[place] = Outcome(NOT_RUN, NOT_RUN, f"{lacking}.")
        except Lacking as lacking:
            found[place] = Outcome(UNDECIDED, UNDECIDED, f"{lacking}.")
    for family in dict.fromkeys(claim.family for claim in claims):
        places = [place for place in tested if claims[place].family == family]
        ps = [_ps(tested[place], claims[place].mixed) for place in places]
        corrected = holm([min(1.0, 2 * min(p.values())) for p in ps])
        for place, p, (adjusted, times) in zip(places, ps, corrected, strict=True):
            found[place] = _outcome(tested[place], claims[place].mixed, p, adjusted, times)
    return [found[place] for place in range(len(claims))]


def _ps(parts: Sequence[Part], mixed: bool) -> dict[str, float]:
    """One-sided p values of a claim's verdicts."""
    each, count = [part.ps() for part in parts], len(parts)
    if mixed:
        ups, downs = [p[APPEARS] for p in each], [p[OPPOSITE] for p in each]
        return {
            APPEARS: min(1.0, count * max(min(ups), min(downs))) if count > 1 else 1.0,
            OPPOSITE: min(max(ups), max(downs)),
            NO_DIFFERENCE: max(p[NO_DIFFERENCE] for p in each),
        }
    none = [p[NO_DIFFERENCE] for p in each if _may_be_none(p)]
    return {
        APPEARS: max(p[APPEARS] for p in each),
        OPPOSITE: min(1.0, count * min(p[OPPOSITE] for p in each)),
        NO_DIFFERENCE: min(1.0, count * min(none)) if none else 1.0,
    }


def _may_be_none(p: dict[str, float]) -> bool:
    """A part that appears is no evidence that there is no difference, however small it is."""
    return 2 * p[APPEARS] > LEVEL


def _outcome(parts: Sequence[Part], mixed: bool, ps: dict[str, float], adjusted: float, times: int) -> Outcome:
    level = LEVEL / times
    found = [verdict for verdict, p in ps.items() if adjusted <= LEVEL and 2 * p <= level]
    runs = tuple(dict.fromkeys(run for part in parts for run in part.estimate.runs))
    measured = "; ".join(dict.fromkeys(part.text(level) for part in parts)) + f". {_errors(parts)}"
    margins = ", ".join(dict.fromkeys(_margin(part) for part in parts))
    common: dict[str, Any] = {"p": adjusted, "level": level, "margins": margins, "runs": runs}
    if not found:
        return Outcome(UNDECIDED, UNDECIDED, measured, _decides(parts, level), **common)
    verdict = found[0]
    if verdict != NO_DIFFERENCE:
        ends = [abs(part.estimate.value) + part.estimate.half_width(level) for part in parts if part.want == "above"]
        small = ends and max(ends) < min(part.margin for part in parts if part.want == "above")
        note = " Smaller than the margin." if small and verdict == APPEARS else ""
        return Outcome(verdict, verdict, measured + note, **common)
    smallest = min(
        (part for part in parts if mixed or _may_be_none(part.ps())), key=lambda part: part.ps()[NO_DIFFERENCE]
    )
    unit = " points" if smallest.show == POINTS else ""
    text = f"{NO_DIFFERENCE} {smallest.written(smallest.margin, False)}{unit}"
    which = f" ({smallest.what})" if len(parts) > 1 and not mixed else ""
    return Outcome(verdict, text + which, measured, **common)


def _margin(part: Part) -> str:
    unit = " points" if part.show == POINTS else ""
    if part.want in ("over", "under"):
        return f"limit {part.written(part.beyond, False)}{unit}"
    beyond = f"beyond {part.written(part.beyond, False)}{unit}" if part.beyond else ""
    margin = f"{part.written(part.margin, False)}{unit}" if part.margin != part.beyond else ""
    return ", ".join(filter(None, (beyond, margin)))


def _errors(parts: Sequence[Part]) -> str:
    """What the intervals cover, in words."""
    known = [part.estimate for part in parts if part.estimate.known]
    texts = []
    for what in dict.fromkeys(estimate.what for estimate in known if math.isfinite(estimate.over_units)):
        of = [estimate for estimate in known if estimate.what == what]
        counts = sorted({estimate.units for estimate in of})
        among = " to ".join(f"{count:,}" for count in (counts[0], *counts[1:][-1:])) if counts[-1] else "the"
        texts.append(f"{among} {what}{'' if all(estimate.paired for estimate in of) else ', unpaired'}")
    seeds = sorted({estimate.seeds for estimate in known if math.isfinite(estimate.over_seeds)})
    texts += [f"{' or '.join(map(str, seeds))} seeds"] if seeds else []
    covered = f"Error over {' and '.join(texts)}" if texts else "No error"
    alone = {run for part in parts for run in part.estimate.uncovered}
    if not alone:
        return f"{covered}."
    some = f" of {len(alone)} of its runs" if seeds else ""
    return f"{covered}; seeds{some} not covered, as there is one."


def _decides(parts: Sequence[Part], level: float) -> str:
    """How many questions or seeds would decide a claim that is undecided: those of the part that asks for most."""
    still_open = [part for part in parts if min(part.ps().values()) * 2 > level] or list(parts)
    if not all(part.estimate.known for part in still_open):
        return "several seeds, as no error is known"
    needed: list[Any] = [part.estimate.needed(*part.distances(), level) for part in still_open]
    ways = []
    if all(one.units for one in needed):
        asked = [part.estimate.units for part in still_open]
        most = max(range(len(needed)), key=lambda place: needed[place].units / asked[place])
        ways.append(f"some {rounded(needed[most].units)} questions ({asked[most]:,} asked)")
    if all(one.seeds for one in needed):
        ways.append(f"some {rounded(max(one.seeds for one in needed))} seeds")
    if ways:
        return " or ".join(ways)
    if any(part.estimate.uncovered for part in still_open):
        return "more seeds; how many, one seed cannot tell"
    return "neither more questions nor more seeds alone"


def rounded(count: int) -> str:
    """Two digits of a count, upwards."""
    size = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // size) * size:,}"
