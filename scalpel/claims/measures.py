"""What claims are made of: measurements that are there, or a sentence on what lacks, and differences of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from scalpel.claims.estimate import LEVEL, Estimate, Lacking, NotRun, Sample, linear, logged
from scalpel.claims.judge import RATIO, Evidence, Part
from scalpel.config.study import Margins
from scalpel.config.types import BASE
from scalpel.exhibits.results import task_name

if TYPE_CHECKING:
    import numpy as np

NAMES = {
    BASE: "base", "grpo": "GRPO", "sft_1ep": "SFT (1 epoch)", "sft_3ep": "SFT (3 epochs)",
    "sft_frozen_mlp": "MLPs frozen", "sft_qk_only": "q and k alone", "sft_own": "SFT on own answers",
    "sft_own_all": "SFT on all own answers",
    "sft_teacher": "SFT on teacher's answers", "sft_oracle": "SFT on GRPO's answers", "grpo_kl": "GRPO with KL term",
    "sft_grpo_rate_1ep": "SFT (1 epoch) at GRPO's rate", "sft_grpo_rate_3ep": "SFT at GRPO's rate",
    "sft_matched_grpo_rate": "SFT at GRPO's rate and questions",
    "sft_own_grpo_rate": "own answers, GRPO's rate", "sft_teacher_grpo_rate": "teacher's, GRPO's rate",
}  # fmt: skip


def called(run: str) -> str:
    return NAMES.get(run, run)


# ---------------------------------------------------------------- what is there


def checked(sample: Sample, what: str) -> Sample:
    import numpy as np

    if not np.isfinite(sample.values).all() or (sample.units is not None and not np.isfinite(sample.units).all()):
        raise Lacking(f"{what} of {called(sample.run)} is not a number")
    return sample


def score(evidence: Evidence, run: str, task: str) -> Sample:
    if run not in evidence.scores:
        raise NotRun(f"{called(run)} was not evaluated")
    if task not in evidence.scores[run]:
        raise NotRun(f"{task_name(task)} was not asked")
    return checked(evidence.scores[run][task], f"the score on {task_name(task)}")


def change(evidence: Evidence, run: str, projection: str) -> Sample:
    of_run = evidence.change.get(run, {})
    if projection not in of_run:
        raise NotRun(f"the weight change of {called(run)} was not measured in {projection}")
    if not any(sample.values.any() for sample in of_run.values()):
        raise Lacking(f"{called(run)} changed no weight")
    return checked(of_run[projection], f"the weight change in {projection}")


def mean_change(evidence: Evidence, run: str, projections: Sequence[str]) -> Sample:
    """Over projections, by layer."""
    samples = [change(evidence, run, projection) for projection in projections]
    if len({(sample.names, sample.seeds) for sample in samples}) > 1:
        raise Lacking(f"not every layer and seed of {called(run)} was measured")
    units: np.ndarray = sum(cast(Any, sample.units) for sample in samples) / len(samples)
    return replace(samples[0], units=units, values=units.mean(axis=1))


def kl(evidence: Evidence, run: str, share: float = 1.0) -> Sample:
    """Of the first checkpoint after this share of the steps."""
    curve = evidence.kl.get(run, {})
    if not curve:
        raise NotRun(f"the KL of {called(run)} was not measured")
    if len(curve) < 4:
        raise Lacking(f"the KL of {called(run)} was measured at fewer than four checkpoints")
    last = max(curve)
    sample = checked(curve[min(step for step in curve if step >= share * last)], "the KL")
    if not (sample.values > 0).all():
        raise Lacking(f"the KL of {called(run)} is zero: it did not train")
    return sample


def steps(evidence: Evidence, run: str, column: str) -> Sample:
    """A logged column by optimizer step, steps without a number left out; Lacking below ten."""
    import numpy as np

    if run not in evidence.log:
        raise NotRun(f"there is no training log of {called(run)}")
    if column not in evidence.log[run]:
        raise Lacking(f"the training log of {called(run)} has no {column}")
    sample = evidence.log[run][column]
    assert sample.units is not None
    finite: Any = np.isfinite(sample.units).all(axis=0)
    if finite.sum() < 10:
        raise Lacking(f"the training log of {called(run)} has fewer than ten steps of {column}")
    units = sample.units[:, finite]
    names = tuple(name for name, kept in zip(sample.names, finite, strict=True) if kept)
    return replace(sample, units=units, values=units.mean(axis=1), names=names)


def cut(sample: Sample, begin: int, end: int) -> Sample:
    """Units begin to end."""
    assert sample.units is not None
    units = sample.units[:, begin:end]
    return replace(sample, units=units, values=units.mean(axis=1), names=sample.names[begin:end])


def tenths(sample: Sample) -> tuple[Sample, Sample]:
    """The first and the last tenth of the steps."""
    assert sample.units is not None
    total = sample.units.shape[1]
    count = max(2, total // 10)
    return cut(sample, 0, count), cut(sample, total - count, total)


# ---------------------------------------------------------------- parts


def gap(evidence: Evidence, a: str, b: str, tasks: Sequence[str]) -> tuple[Estimate, list[str]]:
    """Mean over those tasks that both have of score(a) - score(b), and which these are."""
    for run in (a, b):
        if run not in evidence.scores:
            raise NotRun(f"{called(run)} was not evaluated")
    common = [task for task in tasks if task in evidence.scores[a] and task in evidence.scores[b]]
    if not common:
        raise NotRun(f"{called(a)} and {called(b)} have none of {', '.join(map(task_name, tasks))} in common")
    return linear(_groups([(score(evidence, a, task), score(evidence, b, task)) for task in common])), common


def _groups(pairs: Sequence[tuple[Sample, Sample]]) -> list[list[tuple[float, Sample]]]:
    weight = 1 / len(pairs)
    return [[(weight, a), (-weight, b)] for a, b in pairs]


def higher(evidence: Evidence, margins: Margins, a: str, b: str, tasks: Sequence[str], want: str = "above") -> Part:
    """score(a) - score(b), with a note where what it says rests on one task."""
    found, common = gap(evidence, a, b, tasks)
    where = f", {task_name(common[0])}" if len(common) == 1 else f", mean of {len(common)}"
    return Part(
        f"{called(a)} − {called(b)}{where}", found, margins.score, want=want, note=rests_on(evidence, a, b, common)
    )


def rests_on(evidence: Evidence, a: str, b: str, tasks: Sequence[str]) -> str:
    """Which task the difference rests on: without it alone the 95% interval no longer leaves out zero."""
    whole, _ = gap(evidence, a, b, tasks)
    if len(tasks) < 2 or not abs(whole.value) > whole.half_width():
        return ""
    for left in tasks:
        rest, _ = gap(evidence, a, b, [task for task in tasks if task != left])
        if not rest.value * math.copysign(1, whole.value) > rest.half_width():
            part = Part("without it", rest, 0.0)
            return f"rests on {task_name(left)}; {part.text(LEVEL)}"
    return ""


def slight(evidence: Evidence, margins: Margins, a: str, b: str, tasks: Sequence[str]) -> list[Part]:
    """score(a) above score(b), and by no more than is modest."""
    part = higher(evidence, margins, a, b, tasks)
    return [part, part._replace(want="under", beyond=margins.modest)]


def ratio(what: str, margin: float, a: Sample, b: Sample, want: str = "above") -> Part:
    """mean(a) / mean(b) as a part; a and b paired by their units. margin: a factor."""
    return Part(what, linear([[(1, logged(a)), (-1, logged(b))]]), math.log(margin), RATIO, want)


def much_more(what: str, margins: Margins, a: Sample, b: Sample) -> Part:
    """The same, to be beyond what "much" is."""
    return ratio(what, margins.much, a, b)._replace(beyond=math.log(margins.much))


def unpaired(what: str, margin: float, a: Sample, b: Sample, want: str = "above") -> Part:
    """The ratio of samples whose units are others."""
    return Part(what, linear([[(1, logged(a))], [(-1, logged(b))]]), math.log(margin), RATIO, want)


def spikes(evidence: Evidence, run: str) -> Sample:
    """1 for each step whose gradient norm is above 3 x the median of the 21 steps around it."""
    import numpy as np

    norms = steps(evidence, run, "grad_norm")
    assert norms.units is not None
    total = norms.units.shape[1]
    windows = [norms.units[:, max(0, i - 10) : i + 11] for i in range(total)]
    medians = np.stack([np.median(window, axis=1) for window in windows], axis=1)
    units = (norms.units > 3 * medians).astype(float)
    return replace(norms, units=units, values=units.mean(axis=1), share=True)


def layers_apart(evidence: Evidence, margins: Margins, run: str, projections: Sequence[str], other: str) -> Part:
    """The mean change of the middle half of the layers over that of the first (early) or last (late) quarter."""
    sample = mean_change(evidence, run, projections)
    assert sample.units is not None
    count = sample.units.shape[1]
    if count < 4:
        raise Lacking(f"{count} layers have no middle half")
    quarter = count // 4
    outer = cut(sample, 0, quarter) if other == "early" else cut(sample, count - quarter, count)
    return unpaired(f"{called(run)}, middle / {other}", margins.weights, cut(sample, quarter, count - quarter), outer)
