"""Claims: each reaches every verdict, and degenerate results make it undecided, never an error."""

import functools
import json
import math
import random
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import yaml

from scalpel import claims
from scalpel.claims.estimate import Estimate, Lacking, NotRun, Sample
from scalpel.claims.evidence import measured, published
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
    Part,
    outcomes,
)
from scalpel.claims.measures import change, gap, kl, layers_apart, score, steps
from scalpel.claims.scalpel_vs_hammer import CLAIMS, MLP, PUBLISHED_AS
from scalpel.config.study import Margins
from scalpel.errors import UserError
from scalpel.exhibits.results import PROJECTIONS, Results
from scalpel.exhibits.structure import of_checkpoint
from scalpel.exhibits.uncertainty import binomial_error
from scalpel.published import read as numbers_of
from scalpel.report.verdicts import caveat, verdicts
from tests import synthetic
from tests.synthetic import STUDY
from tests.test_exhibits import DEGENERATE, parquet, plain_scores, world

PUBLISHED = synthetic.WORKFLOW / "published" / f"{STUDY}.yaml"
KNOWLEDGE = ("mmlu", "mmlu_pro", "gpqa_diamond", "ifeval_prompt")
QUESTIONS, SEEDS = 2000, (1, 2, 3)
M = Margins()


def rng_of(*names) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def sample(run: str, units, what: str, **more) -> Sample:
    units = np.atleast_2d(np.asarray(units, dtype=float))
    base = run == "base"
    seeds = (0,) if base else SEEDS[: len(units)]
    return Sample(
        run, seeds, units.mean(axis=1), units, tuple(range(units.shape[1])), what=what, trained=not base, **more
    )


@functools.cache
def luck_of(task: str, *shape: int) -> np.ndarray:
    return rng_of(task).random(shape)


def scored(run: str, task: str, right, draws: int = 1, questions: int = QUESTIONS, seeds: int = 3) -> Sample:
    """right: probability of a right answer by the question's difficulty, a number from 0 to 1. Same random numbers for
    all runs; a seed moves a run by a tenth of a point."""
    difficulty = np.linspace(0, 1, questions, endpoint=False)
    luck = luck_of(task, seeds, questions, draws)[: 1 if run == "base" else seeds]
    moved = [0.001 * (seed - 1) for seed in range(1 if run == "base" else seeds)]
    p = np.array([np.clip(right(difficulty), 0, 1) + m for m in moved])
    return sample(run, (luck < p[:, :, None]).mean(axis=2), "questions", share=True, draws=draws)


def level(p: float):
    return lambda difficulty: np.full(len(difficulty), p)


IN_DOMAIN = {  # probability of a right answer by difficulty, four answers a question
    "base": lambda d: np.where(d < 0.6, 0.5, 0.0),
    "grpo": lambda d: np.where(d < 0.6, 0.62, 0.0),
    "sft_1ep": level(0.35),
    "sft_3ep": level(0.45),
    "sft_qk_only": level(0.2),
    "sft_frozen_mlp": level(0.45),
    "sft_rate_tenth": level(0.372),  # gains as GRPO does
}
OTHERS = {  # GSM8k, AIME24, MMLU, MMLU-Pro, GPQA, IFEval
    "base": (0.80, 0.01, 0.62, 0.62, 0.30, 0.62),
    "grpo": (0.76, 0.01, 0.58, 0.58, 0.30, 0.58),
    "sft_1ep": (0.70, 0.01, 0.44, 0.44, 0.40, 0.44),
    "sft_3ep": (0.60, 0.01, 0.30, 0.30, 0.36, 0.30),
    "sft_frozen_mlp": (0.65, 0.01, 0.20, 0.30, 0.50, 0.30),
    "sft_qk_only": (0.75, 0.01, 0.50, 0.50, 0.20, 0.50),
    "sft_rate_tenth": (0.70, 0.01, 0.44, 0.44, 0.40, 0.44),
    "sft_grpo_rate_3ep": (0.7, 0.01, 0.50, 0.50, 0.30, 0.50),
    "sft_oracle": (0.7, 0.01, 0.58, 0.58, 0.30, 0.58),
    "sft_own": (0.7, 0.01, 0.60, 0.60, 0.40, 0.60),
    "sft_teacher": (0.7, 0.01, 0.40, 0.40, 0.30, 0.40),
    "sft_own_grpo_rate": (0.7, 0.01, 0.60, 0.60, 0.40, 0.60),
    "sft_teacher_grpo_rate": (0.7, 0.01, 0.50, 0.50, 0.30, 0.50),
    "grpo_kl": (0.7, 0.01, 0.58, 0.58, 0.30, 0.58),
}
TASKS = ("gsm8k", "aime24", "mmlu", "mmlu_pro", "gpqa_diamond", "ifeval_prompt")


def scores(**size) -> dict[str, dict[str, Sample]]:
    found = {run: {} for run in OTHERS}
    for run, right in IN_DOMAIN.items():
        found[run]["math_500"] = scored(run, "math_500", right, draws=4, **size)
    for run, levels in OTHERS.items():
        found[run] |= {task: scored(run, task, level(p), **size) for task, p in zip(TASKS, levels, strict=True)}
    return found


def curve(run: str, values, what: str = "questions", size: int = 200) -> dict[float, Sample]:
    """Values at equal steps, over questions whose KL are a common factor apart; a seed moves it by a percent."""
    common = rng_of("kl").lognormal(0, 0.3, size)
    own = rng_of("kl", run).lognormal(0, 0.05, (3, size)) * np.array([[0.99], [1.0], [1.01]])
    return {25 * (i + 1): sample(run, value * common * own, what) for i, value in enumerate(values)}


def layers(run: str, values, noise: float = 0.01, seeds: int = 3, name: str = "") -> Sample:
    """Eight layers and their relative change, or four values for two layers each."""
    values = np.repeat(values, 8 // len(values))
    return sample(run, values * (1 + rng_of(run, name, len(values)).normal(0, noise, (seeds, 8))), "layers")


HUMP, FLAT = [1.0, 1.5, 1.5, 1.0], [1.0, 1.0, 1.0, 1.0]


def changes(run: str, size: float, lead: float, mlp) -> dict[str, Sample]:
    found = {name: layers(run, size * np.array(FLAT)) for name in PROJECTIONS}
    found |= {name: layers(run, size * np.array(mlp)) for name in MLP}
    return found | {name: layers(run, lead * size * np.array(HUMP)) for name in ("q_proj", "k_proj")}


def logs(run: str, **columns) -> dict[str, Sample]:
    noise = rng_of(run, "log").normal(0, 0.01, (3, 60))
    return {name: sample(run, np.asarray(values) * (1 + noise), "steps") for name, values in columns.items()}


def evidence(**changed) -> Evidence:
    """Evidence in which every claim appears; `changed` replaces whole fields."""
    found = scores()
    spiky = [1.0, 1.0, 1.0, 9.0, 1.0] * 12
    structure = {
        run: {"unchanged_bf16": layers(run, [share] * 8), "unchanged": layers(run, [0.01] * 8),
              "rank": layers(run, [0.97] * 8, 0.001), "spectral_drift": layers(run, [drift] * 8),
              "angle": layers(run, [100 * drift] * 8), "overlap": layers(run, [0.3] * 8)}
        for run, share, drift in (("grpo", 0.85, 0.01), ("sft_3ep", 0.1, 0.05))
    }  # fmt: skip
    fields = {
        "scores": found,
        "course": {run: [tasks] for run, tasks in found.items()},
        "kl": {
            "grpo": curve("grpo", [0.01, 0.04, 0.08, 0.082]),
            "sft_3ep": curve("sft_3ep", [0.9, 1.0, 1.0, 1.01]),
            "sft_grpo_rate_3ep": curve("sft_grpo_rate_3ep", [0.5, 0.6, 0.7, 0.8]),
        },
        "change": {
            "grpo": changes("grpo", 1.0, 1.4, FLAT), "sft_3ep": changes("sft_3ep", 40.0, 1.6, HUMP),
            "sft_grpo_rate_3ep": changes("sft_grpo_rate_3ep", 4.0, 1.4, FLAT),
        },
        "log": {
            "grpo": logs("grpo", accuracy_reward=np.linspace(0.3, 0.9, 60), format_reward=np.linspace(0.5, 1, 60),
                         grad_norm=spiky, flops=[100.0] * 60, questions=[8.0] * 60, completion_length=[50.0] * 60),
            "sft_3ep": logs("sft_3ep", loss=np.linspace(2, 0.5, 60), grad_norm=[1.0] * 60, flops=[100.0] * 60,
                            questions=[64.0] * 60),
        },
        "structure": structure,
        "trace": {("mlp", position): [(aie, 0.003, 200) for aie in of]
                  for position, of in (("last subject", (0.02, 0.1, 0.05, 0.01)), ("last", (0.01, 0.02, 0.05, 0.2)))},
        "rivals": {name: Sample("base", (0,), np.array([missed]), missed + rng_of(name).normal(0, 0.02, (1, 12)),
                                tuple(range(12)), what="runs", trained=False)
                   for name, missed in (("KL on math_500 (nats)", 0.1), ("relative weight change", 0.5),
                                        ("spectral drift", 0.6))},
    }  # fmt: skip
    return Evidence(**(fields | changed))


WHOLE = evidence()


def with_scores(**runs) -> Evidence:
    """Evidence with single scores replaced, e.g. grpo={"math_500": 0.9}."""
    found = dict(WHOLE.scores)
    for run, values in runs.items():
        draws = {task: 4 if task == "math_500" else 1 for task in values}
        found[run] = found[run] | {t: scored(run, t, level(p), draws[t]) for t, p in values.items()}
    return replace(WHOLE, scores=found, course={run: [tasks] for run, tasks in found.items()})


def swapped(field: str, a: str = "grpo", b: str = "sft_3ep") -> Evidence:
    found = getattr(WHOLE, field)
    return replace(WHOLE, **{field: found | {a: renamed(found[b], a), b: renamed(found[a], b)}})


def renamed(samples: dict, run: str) -> dict:
    return {key: replace(value, run=run) for key, value in samples.items()}


def changed(run: str, **projections) -> Evidence:
    found = {name: layers(run, values, name=name) for name, values in projections.items()}
    return replace(WHOLE, change=WHOLE.change | {run: WHOLE.change[run] | found})


def logged(run: str, **columns) -> Evidence:
    return replace(WHOLE, log=WHOLE.log | {run: WHOLE.log[run] | logs(run, **columns)})


def structured(run: str, **measures) -> Evidence:
    found = {name: layers(run, [value] * 8, 0.001) for name, value in measures.items()}
    return replace(WHOLE, structure=WHOLE.structure | {run: WHOLE.structure[run] | found})


def kls(**curves) -> Evidence:
    return replace(WHOLE, kl=WHOLE.kl | {run: curve(run, values) for run, values in curves.items()})


def known(p: float) -> dict[str, float]:
    return dict.fromkeys(KNOWLEDGE, p)


def traced(late: float, error: float = 0.001, facts: int = 200) -> Evidence:
    return replace(WHOLE, trace=WHOLE.trace | {("mlp", "last"): [(-0.1, 0.001, facts)] * 3 + [(late, error, facts)]})


def unretained() -> Evidence:
    """GRPO right where the base is not."""
    found = {task: scored("grpo", task, level(0.05)) for task in KNOWLEDGE}
    found["math_500"] = scored("grpo", "math_500", lambda d: np.where(d < 0.6, 0.1, 1.0), 4)
    return replace(WHOLE, scores=WHOLE.scores | {"grpo": WHOLE.scores["grpo"] | found})


def rivalled() -> Evidence:
    found = dict(WHOLE.rivals)
    first, other, *_ = found
    return replace(WHOLE, rivals=found | {first: found[other], other: found[first]})


OPPOSED = {  # claim -> evidence in which the opposite appears
    "GRPO's accuracy": logged("grpo", accuracy_reward=np.linspace(0.9, 0.3, 60)),
    "SFT trains smoothly": logged("sft_3ep", grad_norm=[1.0, 1.0, 1.0, 9.0] * 15),
    "GRPO is less stable": swapped("log"),
    "GRPO is expensive": logged("grpo", flops=[1.0] * 60),
    "Completion lengths": logged("grpo", completion_length=np.linspace(50, 100, 60)),
    "GRPO gives modest": with_scores(grpo={"math_500": 0.9}),
    "SFT gives larger": with_scores(grpo={"math_500": 0.9}),
    "Three epochs": with_scores(sft_1ep=known(0.1)),
    "GSM8k drops": with_scores(grpo={"gsm8k": 0.9}),
    "GRPO degrades": with_scores(grpo=known(0.9)),
    "SFT degrades knowledge": with_scores(sft_3ep=known(0.9)),
    "The same without IFEval": with_scores(sft_3ep=known(0.9)),
    "On GPQA": with_scores(grpo={"gpqa_diamond": 0.6}),
    "AIME24": with_scores(grpo={"aime24": 0.4}),
    "KL is much": swapped("kl"),
    "KL grows early": kls(grpo=[0.08, 0.08, 0.08, 0.08], sft_3ep=[0.1, 0.4, 0.8, 1.0]),
    "KL reaches a plateau under SFT": kls(sft_3ep=[0.1, 0.3, 0.5, 1.0]),
    "KL reaches a plateau under GRPO": kls(grpo=[0.01, 0.02, 0.04, 0.08]),
    "SFT changes the weights": swapped("change"),
    "Queries and keys change most under GRPO": changed("grpo", v_proj=[9.0] * 4),
    "Queries and keys change most under SFT": changed("sft_3ep", v_proj=[900.0] * 4),
    "Values and outputs change less than queries and keys under GRPO": changed("grpo", v_proj=[9.0] * 4),
    "Values and outputs change less than queries and keys under SFT": changed("sft_3ep", v_proj=[900.0] * 4),
    "Query and key updates are largest in middle layers under GRPO": changed("grpo", q_proj=[1.0, 1.0, 1.0, 8.0]),
    "Query and key updates are largest in middle layers under SFT": changed("sft_3ep", q_proj=[99.0, 9.0, 9.0, 1.0]),
    "SFT changes mid-layer": changed("sft_3ep", **{name: [90.0, 10.0, 10.0, 90.0] for name in MLP}),
    "Training only queries and keys leaves": with_scores(sft_qk_only={"math_500": 0.9}),
    "Training only queries and keys limits": with_scores(sft_qk_only={"math_500": 0.9}),
    "Training only queries and keys reduces": with_scores(sft_qk_only={"gsm8k": 0.1}),
    "Training only queries and keys worsens": with_scores(sft_qk_only={"mmlu": 0.9}),
    "Freezing MLPs leaves MATH": with_scores(sft_frozen_mlp={"math_500": 0.2}),
    "Freezing MLPs slightly": with_scores(sft_frozen_mlp={"gsm8k": 0.1}),
    "Freezing MLPs lifts": with_scores(sft_frozen_mlp={"gpqa_diamond": 0.1}),
    "Freezing MLPs leaves the remaining": with_scores(sft_frozen_mlp={"mmlu": 0.9}),
    "Freezing MLPs is": with_scores(sft_frozen_mlp=dict.fromkeys(("math_500", "gsm8k", "aime24", *KNOWLEDGE), 0.9)),
    "Causal tracing": traced(0.05),
    "GRPO amplifies": with_scores(grpo={"math_500": 0.45}),
    "SFT adds": with_scores(grpo={"math_500": 0.5}, sft_3ep={"math_500": 0.99}),
    "GRPO keeps more of the base's right answers than SFT, in domain": unretained(),
    "GRPO keeps more of the base's right answers than SFT, in knowledge": unretained(),
    "At GRPO's learning rate SFT's KL": kls(sft_grpo_rate_3ep=[0.001, 0.001, 0.001, 0.001]),
    "At GRPO's learning rate SFT still changes": swapped("change", "grpo", "sft_grpo_rate_3ep"),
    "The rate makes most": swapped("change", "sft_3ep", "sft_grpo_rate_3ep"),
    "The rate makes little": kls(sft_grpo_rate_3ep=[0.01, 0.02, 0.04, 0.082]),
    "At GRPO's learning rate SFT still forgets": with_scores(sft_grpo_rate_3ep=known(0.9)),
    "At equal gain": with_scores(sft_rate_tenth=known(0.9)),
    "KL on the new task": rivalled(),
    "SFT on the labels": with_scores(sft_oracle=known(0.1)),
    "SFT on one's own": with_scores(sft_own=known(0.1)),
    "So it does": with_scores(sft_own_grpo_rate=known(0.1)),
    "KL regularisation": with_scores(grpo_kl=known(0.9)),
    "RL changes 5-30%": structured("sft_3ep", unchanged_bf16=0.99),
    "RL's updates are": structured("grpo", rank=0.5),
    "Entries that two": structured("grpo", overlap=-0.2),
    "RL's sparsity": structured("grpo", unchanged=0.95),
    "SFT distorts": swapped("structure"),
}


def claim(start: str) -> Claim:
    return next(claim for claim in CLAIMS if claim.text.startswith(start))


def outcome(start: str, found: Evidence, margins: Margins = M) -> Outcome:
    """Of one claim, alone in its family."""
    return outcomes((claim(start),), found, margins)[0]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_claim_comes_out_every_way(claim):
    assert outcomes((claim,), Evidence(), M)[0].kind == NOT_RUN
    assert outcomes((claim,), WHOLE, M)[0].kind == APPEARS, outcomes((claim,), WHOLE, M)[0]
    opposed = next(found for start, found in OPPOSED.items() if claim.text.startswith(start))
    assert outcomes((claim,), opposed, M)[0].kind == OPPOSITE, outcomes((claim,), opposed, M)[0]


def test_all_claims_together_appear_at_their_families_levels():
    found = outcomes(CLAIMS, WHOLE, M)
    assert {one.kind for one in found} == {APPEARS}
    levels = {one.level for claim, one in zip(CLAIMS, found, strict=True) if claim.family == "benchmarks"}
    count = sum(claim.family == "benchmarks" for claim in CLAIMS)
    assert min(levels) == pytest.approx(0.05 / count) and max(levels) == pytest.approx(0.05)


EQUAL = {  # claim -> evidence in which there is no difference, measured precisely
    "SFT gives larger": with_scores(sft_3ep={"math_500": 0.4}, grpo={"math_500": 0.4}),
    "Three epochs": with_scores(sft_3ep=known(0.4), sft_1ep=known(0.4)),
    "GSM8k drops": with_scores(grpo={"gsm8k": 0.6}),
    "GRPO degrades": with_scores(grpo=known(0.6), base=known(0.6)),
    "SFT changes the weights": replace(WHOLE, change=WHOLE.change | {"sft_3ep": changes("sft_3ep", 1.0, 1.4, FLAT)}),
    "Values and outputs change less than queries and keys under GRPO": changed(
        "grpo", **dict.fromkeys(PROJECTIONS, FLAT)
    ),
    "KL is much": kls(grpo=[0.1, 0.2, 0.3, 0.4], sft_3ep=[0.1, 0.2, 0.3, 0.4]),
    "Freezing MLPs is": with_scores(
        sft_frozen_mlp=dict.fromkeys(TASKS, 0.5) | {"math_500": 0.5},
        sft_3ep=dict.fromkeys(TASKS, 0.5) | {"math_500": 0.5},
    ),
    "GRPO keeps more of the base's right answers than SFT, in knowledge": with_scores(
        sft_3ep=known(0.58), grpo=known(0.58)
    ),
}


@pytest.mark.parametrize("start", EQUAL)
def test_a_precise_null_is_no_difference_larger_than_the_margin(start):
    found = outcome(start, EQUAL[start])
    assert found.kind == NO_DIFFERENCE, found
    assert re.search(r"larger than (2\.0 points|×1\.05|×2\.00)", found.verdict)
    narrow = Margins(score=1e-6, weights=1 + 1e-9, much=1 + 1e-9)
    assert outcome(start, EQUAL[start], narrow).kind in (UNDECIDED, OPPOSITE, APPEARS), "the margin decides"


def few(questions: int, seeds: int) -> Evidence:
    found = scores(questions=questions, seeds=seeds)
    return replace(WHOLE, scores=found, course={run: [tasks] for run, tasks in found.items()})


def test_what_few_questions_cannot_tell_is_undecided_and_how_many_would():
    found = outcome("SFT gives larger", few(24, 1))
    assert found.kind == UNDECIDED and found.p > 0.05
    count = int(re.search(r"some ([\d,]+) questions \(24 asked\)", found.decides)[1].replace(",", ""))
    assert 24 < count < 10**5 and "seeds" not in found.decides
    assert "seeds not covered" in found.measured
    assert "seeds" in outcome("GSM8k drops", few(24, 3)).decides or few(24, 3).scores["grpo"]["gsm8k"].mean == 1


def test_questions_are_paired():
    """The same scores on questions of other people would decide nothing."""
    noisy = with_scores(sft_1ep=known(0.52), sft_3ep=known(0.50))
    paired = outcome("Three epochs", noisy)
    assert paired.kind == APPEARS, paired
    strangers = {
        task: replace(found, names=tuple(range(QUESTIONS)), units=found.units[:, ::-1])
        for task, found in noisy.scores["sft_3ep"].items()
        if task in KNOWLEDGE
    }
    apart = replace(noisy, scores=noisy.scores | {"sft_3ep": noisy.scores["sft_3ep"] | strangers})
    strange, own = (gap(found, "sft_1ep", "sft_3ep", KNOWLEDGE)[0] for found in (apart, noisy))
    assert strange.over_units > 4 * own.over_units


def test_seeds_that_disagree_undo_a_verdict():
    found = dict(WHOLE.scores)
    values = found["grpo"]["gsm8k"]
    shifted = values.units.copy()
    for seed, right in ((0, 0.55), (1, 0.79), (2, 0.94)):
        shifted[seed] = rng_of("gsm8k").random(QUESTIONS) < right
    moved = replace(values, units=shifted, values=shifted.mean(axis=1))
    assert abs(moved.mean - values.mean) < 0.03, "the same mean"
    found["grpo"] = found["grpo"] | {"gsm8k": moved}
    one = outcome("GSM8k drops", replace(WHOLE, scores=found))
    assert one.kind == UNDECIDED and "3 seeds" in one.measured and "seeds" in one.decides


def of_z(z: float, family: str = "f") -> Claim:
    """A claim whose difference is z standard errors."""
    estimate = Estimate(0.01 * z, 0.01**2, 100, math.inf, math.nan, 1, "questions", ("grpo",))
    return Claim(str(z), "", family, "", lambda e, m: [Part("x", estimate, m.score)])


def test_families_share_their_level():
    """z = 2.2 has p = 0.028: enough alone, and in a family of two only beside one that is surer."""
    alone = outcomes((of_z(2.2),), WHOLE, M)[0]
    assert alone.kind == APPEARS and alone.p == pytest.approx(0.0278, abs=1e-4) and alone.level == 0.05
    together = outcomes((of_z(2.2), of_z(0.3)), WHOLE, M)[0]
    assert together.kind == UNDECIDED and together.p == pytest.approx(0.0556, abs=1e-4) and together.level == 0.025
    assert [one.kind for one in outcomes((of_z(2.2), of_z(4.0)), WHOLE, M)] == [APPEARS, APPEARS]
    assert outcomes((of_z(2.2), of_z(0.3, "another")), WHOLE, M)[0].kind == APPEARS


def test_it_is_said_on_what_a_mean_rests():
    """SFT loses IFEval and nothing else."""
    only = with_scores(sft_3ep=known(0.6) | {"ifeval_prompt": 0.1}, grpo=known(0.6), base=known(0.6))
    whole, without = outcome("SFT degrades knowledge", only), outcome("The same without IFEval", only)
    assert whole.kind == APPEARS and "rests on IFEval, prompts; without it" in whole.measured
    assert without.kind == NO_DIFFERENCE
    assert "rests on" not in outcome("SFT degrades knowledge", WHOLE).measured


def test_middle_layers_are_compared_with_late_ones():
    rising = changed("grpo", q_proj=[1.0, 2.0, 2.0, 9.0], k_proj=[1.0, 2.0, 2.0, 9.0])
    found = outcome("Query and key updates are largest in middle layers under GRPO", rising)
    assert found.kind == OPPOSITE and "middle / late" in found.measured


def test_a_lead_within_what_layers_differ_is_not_decided():
    """q against o as in the paper's table of GRPO: t = 1.5 over 32 layers."""
    theirs = published(numbers_of(PUBLISHED), PUBLISHED_AS)
    for start in (
        "Queries and keys change most under GRPO",
        "Values and outputs change less than queries and keys under GRPO",
    ):
        assert outcome(start, theirs).kind != APPEARS
    q, o = (theirs.change["grpo"][name].units[0] for name in ("q_proj", "o_proj"))
    t = (q - o).mean() / ((q - o).std(ddof=1) / 32**0.5)
    assert 1 < t < 2
    assert outcome("Queries and keys change most under SFT", theirs).kind == APPEARS


def test_one_seed_and_few_layers_have_no_error():
    thin = {run: {name: layers(run, HUMP, seeds=1) for name in PROJECTIONS} for run in ("grpo", "sft_3ep")}
    thin = {
        run: {n: replace(s, units=s.units[:, ::2], names=(0, 1, 2, 3)) for n, s in c.items()} for run, c in thin.items()
    }
    found = outcome("Query and key updates are largest in middle layers under SFT", replace(WHOLE, change=thin))
    assert found.kind == UNDECIDED and "no error known" in found.measured and "several seeds" in found.decides


def test_a_limit_is_refuted_on_its_other_side():
    """As much as the quantity may be above zero; and nothing is said to decide what is decided."""
    few, full = "RL changes 5-30%", "RL's updates are"
    for start, measures in ((few, {"unchanged_bf16": 0.5}), (few, {"unchanged_bf16": 0.99}), (full, {"rank": 0.4})):
        found = outcome(start, structured("grpo", **measures))
        assert found.kind == OPPOSITE and not found.decides, found


def test_an_effect_of_few_facts_has_student_s_interval():
    """0.2 +- 0.03 of three facts: t is 4.3, and the late site is not above 0.1 for certain."""
    few, many = (outcome("Causal tracing", traced(0.2, 0.03, facts)) for facts in (3, 200))
    assert (few.kind, many.kind) == (UNDECIDED, APPEARS)
    assert "+0.2 [+0.0709, +0.329]" in few.measured and "3 to 200 facts" in few.measured


def test_what_there_is_no_difference_in_is_named():
    """Not a part that appears, however small its difference is."""
    values = {"q_proj": 1.006, "k_proj": 1.006, "v_proj": 1.0, "o_proj": 1.006}
    found = outcome("Values and outputs", changed("grpo", **{name: [v] * 8 for name, v in values.items()}))
    assert found.kind == NO_DIFFERENCE and found.verdict.endswith(("(q / o)", "(k / o)")), found


def test_a_gain_beyond_the_limit_is_not_modest():
    assert outcome("GRPO gives modest", with_scores(grpo={"math_500": 0.55})).kind == OPPOSITE
    assert outcome("GRPO gives modest", with_scores(grpo={"math_500": 0.55}), Margins(modest=0.4)).kind == APPEARS


def test_equal_gain_takes_the_checkpoint_that_is_nearest():
    found = outcome("At equal gain", WHOLE)
    assert "sft_rate_tenth" in found.measured
    far = replace(
        WHOLE, course={run: tasks for run, tasks in WHOLE.course.items() if run in ("sft_3ep", "sft_qk_only")}
    )
    lone = outcome("At equal gain", far)
    assert lone.kind == UNDECIDED and "no SFT checkpoint gains as GRPO does" in lone.measured


# ---------------------------------------------------------------- published numbers


def test_the_papers_own_numbers():
    numbers = numbers_of(PUBLISHED)
    json.dumps(numbers)
    theirs = published(numbers, PUBLISHED_AS)
    found = dict(zip((one.text for one in CLAIMS), outcomes(CLAIMS, theirs, M), strict=True))

    def kind(start: str) -> str:
        return next(one.kind for text, one in found.items() if text.startswith(start))

    for start in (
        "KL is much",
        "KL grows early",
        "SFT changes the weights",
        "SFT degrades",
        "At GRPO's learning rate SFT's KL",
    ):
        assert kind(start) == APPEARS, start
    for start in ("GRPO gives modest", "SFT gives larger", "The same without IFEval", "Freezing MLPs lifts"):
        assert kind(start) == UNDECIDED, start
    assert kind("GRPO keeps") == kind("GRPO's accuracy") == NOT_RUN
    whole = next(one for text, one in found.items() if text.startswith("SFT degrades"))
    assert "rests on IFEval, prompts; without it: +0.7" in whole.measured
    made = theirs.scores["grpo"]["math_500"]
    assert (made.mean, made.error, made.size) == (0.402, binomial_error(0.402, 500), 500)
    assert "unpaired" in whole.measured and "seeds not covered" in whole.measured
    assert "500 asked" in next(one for text, one in found.items() if text.startswith("GRPO gives")).decides


def test_learning_rates_stand_beside_what_compares_them():
    rates = {"grpo": 1e-6, "sft_3ep": 5e-5, "sft_grpo_rate_3ep": 1e-6}
    found = verdicts(CLAIMS, WHOLE, Evidence(), M, rates, {}, str.upper)
    by = {one.claim.text: one.caveat for one in found}
    assert (
        by["SFT changes the weights much more than GRPO"] == "Learning rates differ 50-fold: SFT_3EP 5e-05, GRPO 1e-06."
    )
    assert by["GRPO gives modest gains in domain"] == ""
    assert by["At GRPO's learning rate SFT still changes the weights much more"] == ""
    assert caveat(("base", "grpo", "given"), rates) == ""


def test_columns_that_decide_otherwise_are_marked():
    theirs = with_scores(grpo={"math_500": 0.9})
    found = {one.claim.text: one for one in verdicts(CLAIMS, WHOLE, theirs, M, {}, {})}
    assert found["SFT gives larger gains in domain, after 3 epochs"].differ
    assert not found["AIME24 stays out of reach of base and fine-tuned models"].differ
    alone = verdicts(CLAIMS, WHOLE, Evidence(), M, {}, {})
    assert not any(one.differ or one.there for one in alone)


def test_published_numbers_are_those_of_the_fact_sheet(shared_data):
    facts = yaml.safe_load((shared_data.parent / "facts" / "published-numbers.yaml").read_text())["scalpel_vs_hammer"]
    numbers = numbers_of(PUBLISHED)
    assert numbers["benchmarks"] == facts["benchmarks"]
    for run, matrices in facts["norm_diff_final"].items():
        for projection, layers in matrices.items():
            assert numbers["weight_change"][run][projection] == pytest.approx(layers, rel=0.005), (
                "written with 3 digits"
            )
    for ours, theirs in (("grpo", "grpo"), ("sft_3ep", "sft_3ep"), ("sft_lr_1e-6", "sft_lr_matched_1e-6")):
        curve = numbers["kl"][ours]
        found = dict(zip(curve["steps"], curve["values"], strict=True))
        assert found == pytest.approx(facts["kl_base_to_checkpoint"][theirs], rel=0.005)


# ---------------------------------------------------------------- evidence from results


def evidence_of(made) -> Evidence:
    plan, root = made
    return measured(Results.of_entries([entry.record() for entry in plan.entries[STUDY]], root / "results"))


def test_evidence_has_a_row_for_each_seed(tmp_path):
    made = world(tmp_path, {"overrides": {"seeds": [1, 2, 3]}})
    found = evidence_of(made)
    finals = [plain_scores(made, "grpo", seed).loc[(100, "math_500")]["value"] for seed in (1, 2, 3)]
    made_of = found.scores["grpo"]["math_500"]
    assert made_of.seeds == (1, 2, 3) and made_of.values.tolist() == pytest.approx(finals)
    answers = parquet(made, "evaluate", "grpo", "samples.parquet").query("step == 100 and task == 'math_500'")
    first = answers[(answers["metric"] == answers["metric"].iloc[0]) & (answers["seed"] == 2)]
    by_question = first.groupby("question")["score"].mean()
    assert made_of.units[1].tolist() == pytest.approx(by_question.tolist()) and made_of.draws == 2
    assert len(found.course["grpo"]) == synthetic.CHECKPOINTS
    assert not found.scores["base"]["mmlu"].trained
    curve = parquet(made, "kl", "sft_3ep", "kl.parquet").query("step == 105 and seed == 3")
    assert found.kl["sft_3ep"][105].values[2] == pytest.approx(curve["kl"].mean())
    table = parquet(made, "weight_change", "grpo", "weight_change.parquet")
    expected = table.query("step == 100 and projection == 'v_proj' and seed == 1").sort_values("layer")["relative"]
    assert found.change["grpo"]["v_proj"].units[0].tolist() == pytest.approx(expected.tolist())
    log = parquet(made, "train", "grpo", "log.parquet").query("seed == 2")["accuracy_reward"]
    assert found.log["grpo"]["accuracy_reward"].units[1].tolist() == pytest.approx(log.tolist())
    assert "accuracy_reward" not in found.log["sft_3ep"], "each method logs columns of its own"
    assert {one.kind for one in outcomes(CLAIMS, found, M)} >= {APPEARS, UNDECIDED, NOT_RUN}


def test_evidence_of_structure_and_rivals(tmp_path):
    setting = {"overrides": {"seeds": [42, 43], "studies": {STUDY: {"structure": {}}}}}
    made = world(tmp_path, setting)
    found = evidence_of(made)
    assert set(found.structure["grpo"]) == {"unchanged", "unchanged_bf16", "spectral_drift", "rank", "overlap", "angle"}
    assert found.structure["grpo"]["overlap"].seeds == (43,), "a run's first seed overlaps with none"
    later = parquet(made, "structure", "grpo", "structure.parquet", seed=43).query("step == 100")
    shared, by_chance = of_checkpoint(later)["overlap_bf16"]
    assert found.structure["grpo"]["overlap"].mean == pytest.approx(shared - by_chance), "as the figure has it"
    assert found.structure["grpo"]["overlap"].units.mean() == pytest.approx(shared - by_chance)
    matrices = parquet(made, "structure", "grpo", "structure.parquet", seed=42).query("step == 100")
    assert found.structure["grpo"]["unchanged_bf16"].values[0] == pytest.approx(matrices["unchanged_bf16"].mean())
    r2 = {name: 1 - of.mean for name, of in found.rivals.items()}
    from scalpel.exhibits import rivals

    plan, root = made
    entries = [entry.record() for entry in plan.entries[STUDY]]
    table = rivals.table(Results.of_entries(entries, root / "results"), rivals.Options(tokens=False))
    assert r2 == pytest.approx(table.groupby("predictor")["r2"].first().to_dict(), abs=1e-9)
    assert outcomes((claim("KL on the new task"),), found, M)[0].kind != NOT_RUN


@pytest.mark.parametrize("edit", DEGENERATE, ids=lambda edit: edit.__name__)
def test_degenerate_results_decide_nothing_by_accident(tmp_path, edit):
    evidence = evidence_of(world(tmp_path, edit=edit))
    found = dict(zip((one.text for one in CLAIMS), outcomes(CLAIMS, evidence, M), strict=True))
    assert all(not re.search(r"\b(nan|inf)\b", one.measured) for one in found.values())

    def kind(start: str) -> str:
        return next(one.kind for text, one in found.items() if text.startswith(start))

    if edit.__name__ == "nothing_changed":
        for start in ("KL grows", "KL is", "SFT changes", "Queries and keys", "Query and key", "SFT changes mid-layer"):
            assert kind(start) == UNDECIDED
        assert any("changed no weight" in one.measured for one in found.values())
    if edit.__name__ == "all_equal":
        assert kind("GRPO's accuracy") == NO_DIFFERENCE and kind("SFT trains") != APPEARS
        for start in ("SFT gives larger", "SFT degrades", "SFT on one's own answers"):
            assert kind(start) in (UNDECIDED, NO_DIFFERENCE)
    if edit.__name__ == "one_checkpoint":
        assert kind("KL grows") == kind("GRPO's accuracy") == UNDECIDED
    if edit.__name__ == "one_question":
        assert kind("SFT gives larger") == UNDECIDED, "one question has a wide error, not none"
    if edit.__name__ == "nan_scores":
        for start in ("GRPO gives", "SFT gives", "GSM8k", "SFT degrades", "KL grows", "SFT trains"):
            assert kind(start) == UNDECIDED


ODD = (0.0, 1.0, -1e-12, 1e-100, 1e100, math.nan, math.inf, -math.inf)


def odd_evidence(seed: int) -> Evidence:
    """Evidence in which some of everything is missing, of one seed, zero, equal or no number."""
    rng = random.Random(seed)

    def some(found: dict) -> dict:
        return {key: value for key, value in found.items() if rng.random() < 0.9}

    def odd(one: Sample) -> Sample:
        units = one.units[: rng.choice((1, 3)), : rng.choice((1, 2, 8, 60))].copy()
        if rng.random() < 0.3:
            units[:] = rng.choice(ODD)
        elif rng.random() < 0.3:
            units[0, 0] = rng.choice(ODD)
        with np.errstate(all="ignore"):
            values = units.mean(axis=1)
        return replace(
            one, units=units, values=values, seeds=one.seeds[: len(units)], names=one.names[: units.shape[1]]
        )

    def all_odd(found: dict) -> dict:
        return some({run: some({key: odd(one) for key, one in of_run.items()}) for run, of_run in found.items()})

    scores = all_odd(WHOLE.scores)
    trace = some(
        {key: [(rng.choice(ODD), rng.choice(ODD), rng.choice((0, 1, 2, 200))) for _ in of]
         for key, of in WHOLE.trace.items()}
    )  # fmt: skip
    rivals = some({name: odd(one) for name, one in WHOLE.rivals.items()})
    return Evidence(scores, {run: [tasks] for run, tasks in scores.items()}, all_odd(WHOLE.kl), all_odd(WHOLE.change),
                    all_odd(WHOLE.log), all_odd(WHOLE.structure), trace, rivals)  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_a_claim_is_never_an_error_and_never_decided_by_what_is_no_number(seed):
    for one, found in zip(CLAIMS, outcomes(CLAIMS, odd_evidence(seed), M), strict=True):
        assert found.kind in VERDICTS
        assert not re.search(r"\b(nan|inf)\b", found.measured + found.verdict + found.decides), (one.text, found)


def test_runs_that_are_not_there_are_not_run_at_this_scale(tmp_path):
    study = synthetic.study_file()
    study = {"title": "s", "runs": {"grpo": study["runs"]["grpo"]}, "claims": STUDY}
    raw = {"overrides": {"studies": {STUDY: None}}}  # what the scale says about runs that are not there
    evidence = evidence_of(world(tmp_path, raw, workflow=synthetic.workflow_with(tmp_path, study)))
    found = dict(zip((one.text for one in CLAIMS), outcomes(CLAIMS, evidence, M), strict=True))
    assert found["GRPO's accuracy and format rewards rise"].kind == APPEARS
    assert found["GRPO gives modest gains in domain"].kind in (APPEARS, OPPOSITE, UNDECIDED)
    missing = found["SFT changes the weights much more than GRPO"]
    assert missing.kind == missing.verdict == NOT_RUN == "not run at this scale"
    assert missing.measured == "the weight change of SFT (3 epochs) was not measured in q_proj."


def broken(field: str, run: str, key: str, value: float) -> Evidence:
    found = getattr(WHOLE, field)
    one = found[run][key]
    units = np.full_like(one.units, value)
    return replace(
        WHOLE, **{field: found | {run: found[run] | {key: replace(one, units=units, values=units.mean(axis=1))}}}
    )


@pytest.mark.parametrize(
    ("ask", "kind", "sentence"),
    [
        (lambda: score(WHOLE, "luffy", "math_500"), NotRun, "luffy was not evaluated"),
        (lambda: score(WHOLE, "grpo", "amc"), NotRun, "amc was not asked"),
        (lambda: gap(broken("scores", "grpo", "gsm8k", math.nan), "base", "grpo", ("gsm8k",)), Lacking, "of GRPO"),
        (lambda: change(broken("change", "grpo", "v_proj", math.nan), "grpo", "v_proj"), Lacking, "not a number"),
        (lambda: change(Evidence(change={"a": {}}), "a", "q_proj"), NotRun, "of a was not measured in q_proj"),
        (lambda: layers_apart(Evidence(change={"grpo": {"q_proj": layers("grpo", FLAT)}}), M, "grpo",
                              MLP, "early"), NotRun, "gate_proj"),
        (lambda: kl(replace(WHOLE, kl={"a": curve("a", [0.1] * 3)}), "a"), Lacking, "four checkpoints"),
        (lambda: kl(broken("kl", "grpo", 100, 0.0), "grpo"), Lacking, "it did not train"),
        (lambda: steps(broken("log", "grpo", "flops", math.nan), "grpo", "flops"), Lacking, "ten steps"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_said(ask, kind, sentence):
    with pytest.raises(kind, match=sentence):
        ask()


def test_ties_lead_nothing():
    same = replace(WHOLE, change={run: dict.fromkeys(PROJECTIONS, layers(run, FLAT)) for run in ("grpo", "sft_3ep")})
    assert outcome("Queries and keys change most under GRPO", same).kind == NO_DIFFERENCE


# ---------------------------------------------------------------- margins


def test_margins_stand_in_the_study(tmp_path):
    workflow = synthetic.workflow_with(tmp_path, synthetic.study_file() | {"margins": {"score": 0.3}})
    plan = synthetic.plan_of(tmp_path, {}, workflow)
    assert plan.drawings[STUDY, "report"].recipe["margins"] == Margins(score=0.3).model_dump()
    child = {"title": "c", "extends": STUDY, "margins": {"ratio": 1.2}}
    (workflow / "studies" / "child.yaml").write_text(yaml.safe_dump(child))
    plan = synthetic.plan_of(tmp_path, {"studies": ["child"]}, workflow)
    assert plan.config.studies["child"].margins == Margins(score=0.3, ratio=1.2)
    bad = synthetic.workflow_with(tmp_path / "bad", synthetic.study_file() | {"margins": {"scores": 0.3}})
    with pytest.raises(UserError, match=r"margins\.scores.*score"):
        synthetic.plan_of(tmp_path / "bad", {}, bad)


def test_every_claim_has_its_place_and_test():
    assert len({one.text for one in CLAIMS}) == len(CLAIMS)
    for one in CLAIMS:
        assert one.place and one.test and one.family


# ---------------------------------------------------------------- finding them


def test_a_study_names_its_claims(tmp_path):
    assert claims.find(STUDY, "study.yaml: claims") is CLAIMS
    with pytest.raises(
        UserError, match=r"study\.yaml: claims: .* 'scalpel_vs_hamer'; did you mean 'scalpel_vs_hammer'"
    ):
        claims.find("scalpel_vs_hamer", "study.yaml: claims")
    with pytest.raises(UserError, match="no module"):
        claims.find("judge", "x")
    workflow = synthetic.workflow_with(tmp_path, synthetic.study_file() | {"claims": "hammer"})
    with pytest.raises(UserError, match=r"scalpel_vs_hammer\.yaml: claims"):
        synthetic.plan_of(tmp_path, {}, workflow)


def test_runs_are_named_nowhere_but_in_claims():
    library = synthetic.WORKFLOW.parent / "scalpel"
    for path in library.rglob("*"):
        if path.suffix in (".py", ".jinja", ".css") and "claims" not in path.parts:
            for run in synthetic.study_file()["runs"]:
                assert run == "grpo" or run not in path.read_text(), f"{path} names {run}"
