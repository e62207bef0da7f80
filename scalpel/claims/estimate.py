"""Differences with their errors: over units (questions, layers or steps), paired, and over seeds.

A difference D = sum_k c_k mean(x_k) has two variances. Over units: V_Q = s^2(d_q) / Q of the paired differences d_q =
sum_k c_k mean over seeds of x_kq, with Q - 1 degrees of freedom. Over seeds: V_S = s^2(delta_i) / n of the differences
delta_i of single seeds, with n - 1. The interval is

    D +- sqrt(t_{Q-1}^2 V_Q + t_{n-1}^2 V_S),

each t at the level asked. With few seeds t is large (4.3 for three), and it reduces to the t interval of whichever
variance is the greater. The noise between units and seeds enters both parts, so it is too wide rather than too narrow
(tests/test_estimate.py measures its coverage). With one seed V_S is not known and `uncovered` names the runs.

Where a mean is one over strata (MMLU's G subjects count alike, however many questions Q_g each has), V_Q is
sum_g s_g^2(d) / Q_g / G^2, with the degrees of freedom that Satterthwaite (1946) gives such a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

from scalpel.exhibits.uncertainty import binomial_error

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
POWER = 0.8  # chance with which what is said to decide would decide


class Lacking(Exception):
    """What a claim needs is there and cannot be used; the message says what it is."""


class NotRun(Lacking):
    """A run, benchmark or measurement that a claim needs is no part of the study."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one run.

    values: one per seed. units: seeds x units, or None where only `error`, the standard error of the value, is known
    (nan: not even that). names: of the units, by which samples are paired. trained: false for the base model, which
    has no seeds. share: units lie between 0 and 1, so that equal ones prove no certainty.
    """

    run: str
    seeds: tuple[int, ...]
    values: np.ndarray
    units: np.ndarray | None = None
    names: tuple = ()
    error: float = math.nan
    what: str = "questions"
    trained: bool = True
    share: bool = False
    draws: int = 1  # samples of each question
    size: int = 0  # how many units the error is of, where there are none
    strata: tuple = ()  # of each unit, where the value is the unweighted mean over strata; empty: the mean over units
    effective: float = 0  # how many equal units would weigh as these do; 0: as many as there are

    @property
    def mean(self) -> float:
        return float(self.values.mean())


def of_seed(sample: Sample, seed: int) -> Sample:
    """One seed of a sample that has units."""
    assert sample.units is not None
    place = slice(at := sample.seeds.index(seed), at + 1)
    return replace(sample, seeds=(seed,), values=sample.values[place], units=sample.units[place])


def logged(sample: Sample) -> Sample:
    """The logarithm of the mean over units, linearised in the units: log m + x / m - 1. Lacking unless m > 0."""
    import numpy as np

    if not (sample.values > 0).all():
        raise Lacking(f"a mean of {sample.run} is not above zero, so that it has no ratio")
    with np.errstate(over="ignore", invalid="ignore"):
        values, units = np.log(sample.values), sample.units
        if units is not None:
            means = units.mean(axis=1, keepdims=True)
            if not (means > 0).all():
                raise Lacking(f"a mean of {sample.run} is not above zero, so that it has no ratio")
            units = np.log(means) + units / means - 1
    return replace(sample, values=values, units=units, error=sample.error / sample.mean, share=False)


class Needed(NamedTuple):
    """How much would decide: units or seeds in all; None where no number of them would, or none is known."""

    units: int | None
    seeds: int | None


@dataclass(frozen=True)
class Estimate:
    """A difference and its variances; a variance that is nan is not known."""

    value: float
    over_units: float
    units: int  # in all groups together; 0: not known
    unit_df: float
    over_seeds: float
    seeds: int  # of the run that has fewest
    what: str
    runs: tuple[str, ...]
    uncovered: tuple[str, ...] = ()  # runs with one seed
    paired: bool = True  # by units

    @property
    def known(self) -> bool:
        """Whether there is an error at all."""
        return math.isfinite(self.value) and any(math.isfinite(v) for v in (self.over_units, self.over_seeds))

    @property
    def stderr(self) -> float:
        """Over units and seeds together, as far as these are known; nan where no error is."""
        return math.sqrt(math.fsum(variance for variance, _ in self.parts())) if self.known else math.nan

    def parts(self) -> list[tuple[float, float]]:
        """(variance, degrees of freedom) of what is known."""
        both = (self.over_units, self.unit_df), (self.over_seeds, self.seeds - 1)
        return [(variance, df) for variance, df in both if math.isfinite(variance)]

    def half_width(self, level: float = LEVEL) -> float:
        """Of the two-sided interval at 1 - level; nan where no error is known."""
        return half_width(self.parts(), level) if self.known else math.nan

    def tail(self, distance: float) -> float:
        """One-sided p value of lying `distance` above a bound: small when far above it, 1 where no error is known.

        The level at which half of the two-sided interval is as wide as the distance.
        """
        if not self.known or not math.isfinite(distance):
            return 1.0
        if not any(variance for variance, _ in self.parts()):
            return 0.0 if distance > 0 else 1.0 if distance < 0 else 0.5
        if distance <= 0:
            return 1.0 - self.tail(-distance) if distance else 0.5
        if len(self.parts()) == 1:
            ((variance, df),) = self.parts()
            return _below(-distance / math.sqrt(variance), df)
        low, high = -300.0, 0.0  # log10 of the two-sided level
        for _ in range(40):
            middle = (low + high) / 2
            if half_width(self.parts(), 10**middle) > distance:
                low = middle
            else:
                high = middle
        return 10**high / 2

    def needed(self, margin: float, observed: float, level: float) -> Needed:
        """Units, or seeds, with which POWER of all studies would decide: whether there is no difference or one of
        `margin`, and the one observed, which lies `observed` away from the bound that would decide it."""
        if not self.known:
            return Needed(None, None)
        asked = [(margin, -_t(math.inf, 1 - POWER)), (observed, -_t(math.inf, 2 * (1 - POWER)))]
        asked = [(distance, z) for distance, z in asked if distance > 0]

        def enough(units: float, seeds: float) -> bool:
            return bool(asked) and all(self._decides(units, seeds, distance, level, z) for distance, z in asked)

        units = _least(lambda factor: enough(factor, 1)) if self.what == "questions" and self.units else None
        seeds = _least(lambda factor: enough(1, factor)) if self.over_seeds > 0 else None
        return Needed(
            math.ceil(units * self.units) if units else None,
            max(math.ceil(seeds * self.seeds), self.seeds + 1) if seeds else None,
        )

    def _decides(self, units: float, seeds: float, distance: float, level: float, z: float) -> bool:
        """Whether `units` and `seeds` times as many suffice."""
        both = (
            (self.over_units / units, (self.unit_df + 1) * units - 1),
            (self.over_seeds / seeds, self.seeds * seeds - 1),
        )
        known = [(variance, df) for variance, df in both if math.isfinite(variance)]
        return half_width(known, level) + z * math.sqrt(sum(variance for variance, _ in known)) <= distance


def half_width(parts: Sequence[tuple[float, float]], level: float) -> float:
    """sqrt(sum of t^2 x variance), t the two-sided quantile of each part's degrees of freedom."""
    return math.sqrt(sum(variance * _t(df, level) ** 2 for variance, df in parts if variance))


def _t(df: float, level: float) -> float:
    """Quantile of Student's t at level / 2, which is below zero."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(level / 2) if math.isinf(df) else stdtrit(max(df, 1), level / 2))


def _below(t: float, df: float) -> float:
    """Probability of a value of Student's t below t."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(t) if math.isinf(df) else stdtr(max(df, 1), t))


def _least(enough: Callable[[float], bool]) -> float | None:
    """The least factor above 1 that is enough, to 1%; None when a million is not."""
    low, high = 1.0, 10.0**6
    if not enough(high):
        return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


# ---------------------------------------------------------------- from samples


def linear(groups: Sequence[Sequence[tuple[float, Sample]]]) -> Estimate:
    """sum of c x mean over all (c, sample). Samples of a group share their units and are paired by them; those of
    different groups have independent units. All share their seeds: runs with the same two seeds or more are paired."""
    groups = [_matched(group) for group in groups]
    terms = [term for group in groups for term in group]
    found = [_over_units(group) for group in groups]
    over_seeds, seeds, uncovered = _over_seeds(terms)
    return Estimate(
        math.fsum(c * sample.mean for c, sample in terms), math.fsum(variance for variance, _, _ in found),
        sum(count for _, count, _ in found), min(df for _, _, df in found), over_seeds, seeds, terms[0][1].what,
        tuple(dict.fromkeys(sample.run for _, sample in terms)), uncovered,
        all(sample.units is not None for _, sample in terms),
    )  # fmt: skip


def _matched(group: Sequence[tuple[float, Sample]]) -> list[tuple[float, Sample]]:
    """The group's samples on the units that all of them have; Lacking when there is none."""
    samples = [sample for _, sample in group]
    names = samples[0].names
    if any(sample.units is None for sample in samples) or all(sample.names == names for sample in samples):
        return list(group)
    shared = set(names).intersection(*(sample.names for sample in samples[1:]))
    if not shared:
        raise Lacking(f"{samples[0].run} and {samples[-1].run} share no {samples[0].what}")
    return [(c, _at(sample, [name for name in names if name in shared])) for c, sample in group]


def _at(sample: Sample, names: Sequence) -> Sample:
    """The sample as if it had been measured on these of its units alone."""
    assert sample.units is not None
    column = {name: place for place, name in enumerate(sample.names)}
    taken = [column[name] for name in names]
    strata = tuple(sample.strata[place] for place in taken) if sample.strata else ()
    units = sample.units[:, taken]
    return replace(sample, names=tuple(names), units=units, values=mean_over(units, strata), strata=strata)


def mean_over(units: np.ndarray, strata: tuple) -> np.ndarray:
    """Means over the last axis, or, with strata, the unweighted means of the strata's means."""
    import numpy as np

    if not strata:
        return np.asarray(units.mean(axis=-1))
    _, at, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    return np.asarray((units / sizes[at]).sum(axis=-1) / len(sizes))


def variance_of_mean(units: np.ndarray, strata: tuple = ()) -> tuple[float, float]:
    """(variance of `mean_over` of these units, degrees of freedom); the variance is nan where it cannot be known.

    A stratum of one unit is taken to vary as the others do, pooled.
    """
    import numpy as np

    count = len(units)
    labels, at, sizes = np.unique(strata or np.zeros(count), return_inverse=True, return_counts=True)
    with np.errstate(over="ignore", invalid="ignore"):
        if len(labels) in (1, count):
            return (float(units.var(ddof=1) / count) if count > 1 else math.nan), count - 1
        means = np.bincount(at, units) / sizes
        squares = np.bincount(at, (units - means[at]) ** 2)
        several = sizes > 1
        pooled = squares.sum() / (count - len(labels))
        parts = np.where(several, squares / np.maximum(sizes - 1, 1), pooled) / sizes / len(labels) ** 2
        variance, spread = float(parts.sum()), float((parts[several] ** 2 / (sizes[several] - 1)).sum())
    return variance, variance**2 / spread if spread > 0 else count - len(labels)


def _over_units(group: Sequence[tuple[float, Sample]]) -> tuple[float, int, float]:
    """(variance over units, number of units, degrees of freedom) of samples that are `_matched`; the variance is nan
    with fewer than two units."""
    import numpy as np

    samples = [sample for _, sample in group]
    if any(sample.units is None for sample in samples):
        return math.fsum((c * sample.error) ** 2 for c, sample in group), min(s.size for s in samples), math.inf
    count = len(samples[0].names)
    if not count:
        raise Lacking(f"{samples[0].run} was asked no {samples[0].what}")
    differences = np.zeros(count)
    for c, sample in group:
        assert sample.units is not None
        differences += c * sample.units.mean(axis=0)
    variance, df = variance_of_mean(differences, samples[0].strata)
    weighing = min((sample.effective for sample in samples if sample.effective), default=count)
    if samples[0].share and np.isfinite(differences).all() and not variance > 1e-30:
        # Nobody's difference is certain because a small set of questions happened to be answered alike.
        variance, df = (max(abs(c) for c, _ in group) * binomial_error(0.0, weighing)) ** 2, weighing - 1
    return variance, count, min(df, weighing - 1)


def _over_seeds(terms: Sequence[tuple[float, Sample]]) -> tuple[float, int, tuple[str, ...]]:
    """(variance over seeds or nan, seeds, runs whose seeds are not covered)."""
    parts: dict[str, np.ndarray] = {}
    seeds: dict[str, tuple[int, ...]] = {}
    for c, sample in terms:
        if sample.trained:
            if seeds.setdefault(sample.run, sample.seeds) != sample.seeds:
                raise Lacking(f"not everything was measured of each seed of {sample.run}")
            parts[sample.run] = parts.get(sample.run, 0) + c * sample.values
    alone = tuple(run for run in parts if len(seeds[run]) == 1)
    several = [run for run in parts if len(seeds[run]) > 1]
    if not several:
        return math.nan, 1, alone
    if len({seeds[run] for run in several}) == 1:
        parts = {"paired": cast("np.ndarray", sum(parts[run] for run in several))}
    else:
        parts = {run: parts[run] for run in several}
    variance = math.fsum(float(found.var(ddof=1)) / len(found) for found in parts.values())
    return variance, min(map(len, parts.values())), alone
