"""The claims of "Scalpel vs. Hammer", each with its place in the paper and its test; then those of its rivals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from scalpel.claims.estimate import LEVEL, Estimate, Lacking, NotRun, Sample, linear, logged
from scalpel.claims.judge import PLAIN, RATIO, Claim, Evidence, Part
from scalpel.claims.measures import (
    called,
    change,
    checked,
    cut,
    gap,
    higher,
    kl,
    layers_apart,
    mean_change,
    much_more,
    ratio,
    score,
    slight,
    spikes,
    steps,
    tenths,
    unpaired,
)
from scalpel.config.study import Margins
from scalpel.config.types import BASE
from scalpel.exhibits.results import PROJECTIONS, task_name

IN_DOMAIN = "math_500"
KNOWLEDGE = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")  # the paper's knowledge-intensive four
WITHOUT_IFEVAL = KNOWLEDGE[:3]
MLP = ("gate_proj", "up_proj", "down_proj")
QUERY_KEY, VALUE_OUTPUT = ("q_proj", "k_proj"), ("v_proj", "o_proj")
AT_RATE = ("sft_grpo_rate_3ep", "sft_grpo_rate_1ep", "sft_matched_grpo_rate")  # SFT at GRPO's rate; the first there is
TEACHER = (
    "sft_1ep",
    "sft_3ep",
    "sft_matched",
    "sft_teacher",
    "sft_rate_tenth",
    "sft_rate_third",
    *AT_RATE,
)  # its answers
PUBLISHED_AS = {"sft_grpo_rate_3ep": "sft_lr_1e-6"}  # the authors' made 571 steps, 3.7 epochs
Judge = Callable[[Evidence, Margins], Sequence[Part]]


# ---------------------------------------------------------------- 3.1 and 3.2: training


def rewards_rise(e: Evidence, m: Margins) -> list[Part]:
    found = []
    for column, name in (("accuracy_reward", "accuracy"), ("format_reward", "format")):
        first, last = tenths(steps(e, "grpo", column))
        found.append(Part(f"{name}, last − first tenth", linear([[(1, last)], [(-1, first)]]), m.reward, PLAIN))
    return found


def sft_is_smooth(e: Evidence, m: Margins) -> list[Part]:
    first, last = tenths(steps(e, "sft_3ep", "loss"))
    rare = Part("share of steps with a spike", linear([[(1, spikes(e, "sft_3ep"))]]), 0, PLAIN, "under", m.spikes)
    return [unpaired("loss, first / last tenth", m.ratio, first, last), rare]


def grpo_is_less_stable(e: Evidence, m: Margins) -> list[Part]:
    groups = [[(1, spikes(e, "grpo"))], [(-1, spikes(e, "sft_3ep"))]]
    return [Part("share of steps with a spike, GRPO − SFT", linear(groups), m.spikes, PLAIN)]


def grpo_costs_more(e: Evidence, m: Margins) -> list[Part]:
    samples: list[Any] = []
    for run in ("grpo", "sft_3ep"):
        flops, questions = steps(e, run, "flops"), steps(e, run, "questions")
        assert flops.units is not None and questions.units is not None
        if flops.units.shape != questions.units.shape or not (questions.units > 0).all():
            raise Lacking(f"the training log of {called(run)} does not say what each step asked")
        units = flops.units / questions.units
        samples.append(replace(flops, units=units, values=units.mean(axis=1)))
    return [unpaired("operations for each question asked, GRPO / SFT", m.ratio, *samples)]


def lengths_stay(e: Evidence, m: Margins) -> list[Part]:
    first, last = tenths(steps(e, "grpo", "completion_length"))
    return [unpaired("tokens of a completion, last / first tenth", m.ratio, last, first, "same")]


# ---------------------------------------------------------------- 3.3: benchmarks


def epochs_exacerbate(e: Evidence, m: Margins) -> list[Part]:
    return [higher(e, m, "sft_3ep", "sft_1ep", (IN_DOMAIN,)), higher(e, m, "sft_1ep", "sft_3ep", KNOWLEDGE)]


def forgets_more(tasks: Sequence[str]) -> Judge:
    return lambda e, m: [higher(e, m, BASE, "sft_3ep", tasks), higher(e, m, "grpo", "sft_3ep", tasks)]


def aime_is_too_hard(e: Evidence, m: Margins) -> list[Part]:
    return [
        Part(called(run), linear([[(1, score(e, run, "aime24"))]]), 0, want="under", beyond=m.out_of_reach)
        for run in (BASE, "grpo", "sft_1ep", "sft_3ep")
    ]


# ---------------------------------------------------------------- 4.1: distributions


def kl_is_larger(e: Evidence, m: Margins) -> list[Part]:
    return [much_more("last checkpoints, SFT / GRPO", m, kl(e, "sft_3ep"), kl(e, "grpo"))]


def kl_grows_early(e: Evidence, m: Margins) -> list[Part]:
    terms = [(1, kl(e, "sft_3ep", 0.25)), (-1, kl(e, "sft_3ep")), (-1, kl(e, "grpo", 0.25)), (1, kl(e, "grpo"))]
    found = linear([[(c, logged(sample)) for c, sample in terms]])
    return [Part("share of the last KL after a quarter of the steps, SFT / GRPO", found, math.log(m.ratio), RATIO)]


def kl_plateaus(run: str) -> Judge:
    return lambda e, m: [
        ratio(f"{called(run)}, end / three quarters of the steps", m.ratio, kl(e, run), kl(e, run, 0.75), "same")
    ]


# ---------------------------------------------------------------- 4.2: weights


def sft_changes_more(e: Evidence, m: Margins) -> list[Part]:
    sft, grpo = (mean_change(e, run, tuple(PROJECTIONS)) for run in ("sft_3ep", "grpo"))
    return [much_more("SFT / GRPO", m, sft, grpo)]


def leads(run: str, others: Sequence[str]) -> Judge:
    """Queries and keys above each of the others, paired by layer."""

    def judge(e: Evidence, m: Margins) -> list[Part]:
        short = {name: name.removesuffix("_proj") for name in PROJECTIONS}
        return [
            ratio(f"{short[lead]} / {short[other]}", m.weights, change(e, run, lead), change(e, run, other))
            for lead in QUERY_KEY
            for other in others
        ]

    return judge


def in_the_middle(run: str) -> Judge:
    return lambda e, m: [layers_apart(e, m, run, QUERY_KEY, other) for other in ("early", "late")]


def sft_changes_middle_mlps(e: Evidence, m: Margins) -> list[Part]:
    sft, grpo = mean_change(e, "sft_3ep", MLP), mean_change(e, "grpo", MLP)
    assert sft.units is not None
    count = sft.units.shape[1]
    if count < 4 or grpo.names != sft.names:
        raise Lacking(f"{count} layers have no middle half, or are others in GRPO")
    quarter = count // 4
    ends = (quarter, count - quarter), (0, quarter)
    groups = [
        [(c, logged(cut(sft, *end))), (-c, logged(cut(grpo, *end)))] for c, end in zip((1, -1), ends, strict=True)
    ]
    versus = Part("middle / early, SFT / GRPO", linear(groups), math.log(m.weights), RATIO)
    return [layers_apart(e, m, "sft_3ep", MLP, "early"), versus]


# ---------------------------------------------------------------- 5: freezing


def each(a: str, b: str, tasks: Sequence[str]) -> Judge:
    """score(a) above score(b) on every one of the tasks that both have."""

    def judge(e: Evidence, m: Margins) -> list[Part]:
        _, common = gap(e, a, b, tasks)
        return [higher(e, m, a, b, (task,)) for task in common]

    return judge


def freezing_is_inconclusive(e: Evidence, m: Margins) -> list[Part]:
    _, common = gap(e, "sft_frozen_mlp", "sft_3ep", ("aime24", IN_DOMAIN, "gsm8k", *KNOWLEDGE))
    return [higher(e, m, "sft_frozen_mlp", "sft_3ep", (task,)) for task in common]


# ---------------------------------------------------------------- appendix D: causal tracing


def sites(e: Evidence, m: Margins) -> list[Part]:
    found = []
    for position, name in (("last subject", "early site: MLP at the last subject token"), ("last", "late site")):
        layers = e.trace.get(("mlp", position), [])
        if not layers:
            raise NotRun("causal tracing was not run")
        begin = len(layers) // 2 if position == "last" else 0
        layers = layers[begin:]
        place = max(range(len(layers)), key=lambda layer: layers[layer][0])
        aie, stderr, facts = layers[place]
        estimate = Estimate(aie, stderr**2, facts, facts - 1, math.nan, 1, "facts", (BASE,))
        what = f"{name}, layer {place + begin}" + (" of the upper half" if begin else "")
        part = Part(what, estimate, m.share, PLAIN, tries=len(layers))
        found.append(part._replace(want="over", beyond=0.1) if position == "last" else part)
    return found


# ---------------------------------------------------------------- the title: amplify or replace


def at_k(sample: Sample, k: int) -> Sample:
    """pass@k of every question from its samples: 1 - C(n - c, k) / C(n, k), unbiased (Chen et al., 2021)."""
    import numpy as np

    assert sample.units is not None
    n = sample.draws
    ways = np.array([1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)])
    units = ways[np.clip(np.rint(sample.units * n), 0, n).astype(int)]
    return replace(sample, units=units, values=units.mean(axis=1))


def sampled(e: Evidence, run: str) -> Sample:
    sample = score(e, run, IN_DOMAIN)
    if sample.units is None:
        raise NotRun("there are no answers to single questions")
    return replace(sample, values=sample.units.mean(axis=1))


def gain_shrinks_with_k(run: str) -> Judge:
    def judge(e: Evidence, m: Margins) -> list[Part]:
        base, tuned = sampled(e, BASE), sampled(e, run)
        k = min(base.draws, tuned.draws)
        if k < 2:
            raise NotRun(f"{task_name(IN_DOMAIN)} was answered once a question; pass@k needs several samples")
        terms = [(1, at_k(tuned, 1)), (-1, at_k(base, 1)), (-1, at_k(tuned, k)), (1, at_k(base, k))]
        beyond = linear([[(1, at_k(tuned, k)), (-1, at_k(base, k))]])
        reach = Part(f"gain at pass@{k}", beyond, m.score).text(LEVEL)
        return [Part(f"gain of {called(run)} at pass@1 − at pass@{k}", linear([terms]), m.score, note=reach)]

    return judge


def kept(e: Evidence, run: str, tasks: Sequence[str], other: str | None = None) -> Estimate:
    """Of the base's right answers the share that a run has right, too, sum(b x) / sum(b), linearised in the questions
    that the base has right at all; or that share's difference from another run's."""
    import numpy as np

    groups = []
    asked = [task for task in tasks if all(task in e.scores.get(r, {}) for r in (BASE, run, other or run))]
    if not asked:
        raise NotRun(f"{called(run)} and {called(other or BASE)} have none of {', '.join(map(task_name, tasks))}")
    for task in asked:
        base = score(e, BASE, task)
        terms = []
        for c, name in ((1, run), (-1, other)):
            if name is None:
                continue
            sample = score(e, name, task)
            if sample.units is None or base.units is None:
                raise NotRun("there are no answers to single questions")
            if sample.names != base.names:
                raise Lacking(f"{called(name)} and base were asked other questions of {task_name(task)}")
            right = base.units.mean(axis=0)
            known = np.flatnonzero(right > 0)
            if not len(known):
                raise Lacking(f"base has no right answer on {task_name(task)}")
            right, scored = right[known], sample.units[:, known]
            shares = (scored * right).sum(axis=1) / right.sum()
            units = shares[:, None] + right * (scored - shares[:, None]) / right.mean()
            names, weighing = tuple(sample.names[place] for place in known), right.sum() ** 2 / (right**2).sum()
            sample = replace(sample, names=names, units=units, values=np.asarray(shares), strata=())
            terms.append((c / len(asked), replace(sample, effective=float(weighing))))
        groups.append(terms)
    return linear(groups)


def keeps_more(a: str, b: str, tasks: Sequence[str]) -> Judge:
    def judge(e: Evidence, m: Margins) -> list[Part]:
        shares = ", ".join(f"{called(run)} {100 * kept(e, run, tasks).value:.0f}%" for run in (a, b))
        what = f"base's right answers kept, {called(a)} − {called(b)}"
        return [Part(what, kept(e, a, tasks, b), m.score, note=shares)]

    return judge


# ---------------------------------------------------------------- the learning rate


def further_at_rate(what: str) -> Judge:
    def judge(e: Evidence, m: Margins) -> list[Part]:
        run = e.first(*AT_RATE)
        if what == "kl":
            return [much_more(f"KL, {called(run)} / GRPO", m, kl(e, run), kl(e, "grpo"))]
        sft, grpo = (mean_change(e, name, tuple(PROJECTIONS)) for name in (run, "grpo"))
        return [much_more(f"weight change, {called(run)} / GRPO", m, sft, grpo)]

    return judge


def rate_explains(what: str) -> Judge:
    """Which factor of SFT / GRPO is the greater: SFT / SFT at GRPO's rate, or SFT at GRPO's rate / GRPO."""

    def judge(e: Evidence, m: Margins) -> list[Part]:
        middle = e.first(*AT_RATE)
        one = "sft_3ep" if middle != "sft_grpo_rate_1ep" else "sft_1ep"
        runs = ((1, one), (-2, middle), (1, "grpo"))
        of = {run: kl(e, run) if what == "KL" else mean_change(e, run, tuple(PROJECTIONS)) for _, run in runs}
        sign = 1 if what == "weights" else -1
        found = linear([[(sign * c, logged(of[run])) for c, run in runs]])
        text = "by the rate / by the rest" if sign > 0 else "by the rest / by the rate"
        return [Part(f"{what}, factor {text}", found, math.log(m.ratio), RATIO)]

    return judge


def knowledge_at_rate(e: Evidence, m: Margins) -> list[Part]:
    return [higher(e, m, "grpo", e.first(*AT_RATE), KNOWLEDGE)]


def own_answers_forget_less(e: Evidence, m: Margins) -> list[Part]:
    return [higher(e, m, e.first("sft_own", "sft_own_all"), e.first("sft_teacher", "sft_1ep"), KNOWLEDGE)]


# ---------------------------------------------------------------- rivals: the four sources


def at_equal_gain(e: Evidence, m: Margins) -> list[Part]:
    """Knowledge of GRPO's last checkpoint against that of the SFT checkpoint whose score in domain is nearest."""
    grpo = score(e, "grpo", IN_DOMAIN)
    runs = [run for run in TEACHER if run in e.course]
    known = [
        (abs(tasks[IN_DOMAIN].mean - grpo.mean), run, place)
        for run in runs
        for place, tasks in enumerate(e.course[run])
        if IN_DOMAIN in tasks and math.isfinite(tasks[IN_DOMAIN].mean)
    ]
    if not known:
        raise NotRun("no SFT was evaluated")
    apart, run, place = min(known)
    if apart > m.score + 1e-9:
        raise Lacking(f"no SFT checkpoint gains as GRPO does: the nearest, of {run}, is {100 * apart:.1f} points apart")
    there = replace(e, scores=e.scores | {run: e.course[run][place]})
    part = higher(there, m, "grpo", run, KNOWLEDGE)
    note = f"{run}, checkpoint {place + 1} of {len(e.course[run])}"
    return [part._replace(note=f"{part.note}; {note}" if part.note else note)]


def kl_tells_most(e: Evidence, m: Margins) -> list[Part]:
    names = [name for name in e.rivals if name.startswith("KL")]
    if not names or len(e.rivals) < 2:
        raise NotRun("fewer than three runs have forgetting and its predictors")
    parts, first = [], checked(e.rivals[names[0]], "R²")
    for name, other in e.rivals.items():
        if name != names[0]:
            found = linear([[(1, checked(other, "R²")), (-1, first)]])
            what = f"R² of {names[0]} − of {name}".replace(" (nats)", "")
            parts.append(Part(what, found, m.share, PLAIN))
    return parts


def of_structure(e: Evidence, run: str, name: str) -> Sample:
    if name not in e.structure.get(run, {}):
        raise NotRun(f"the structure of updates ({name}) of {called(run)} was not measured")
    return checked(e.structure[run][name], name)


def small_subnetwork(e: Evidence, m: Margins) -> list[Part]:
    grpo, sft = (of_structure(e, run, "unchanged_bf16") for run in ("grpo", "sft_3ep"))
    few = Part("entries unchanged in bfloat16, GRPO", linear([[(1, grpo)]]), m.share, PLAIN, "over", 0.7)
    some = few._replace(want="under", beyond=0.95)
    return [few, some, Part("entries unchanged, GRPO − SFT", linear([[(1, grpo), (-1, sft)]]), m.share, PLAIN)]


def nearly_full_rank(e: Evidence, m: Margins) -> list[Part]:
    found = linear([[(1, of_structure(e, "grpo", "rank"))]])
    return [Part("rank at 99% of the energy / full rank, GRPO", found, m.share, PLAIN, "over", 0.9)]


def overlaps(e: Evidence, m: Margins) -> list[Part]:
    found = linear([[(1, of_structure(e, "grpo", "overlap"))]])
    return [Part("changed entries two seeds share − of unrelated sets", found, m.share, PLAIN)]


def sparsity_is_rounding(e: Evidence, m: Margins) -> list[Part]:
    found = linear([[(1, of_structure(e, "grpo", "unchanged_bf16")), (-1, of_structure(e, "grpo", "unchanged"))]])
    return [Part("entries unchanged, in bfloat16 − as stored, GRPO", found, m.share, PLAIN)]


def sft_distorts(e: Evidence, m: Margins) -> list[Part]:
    drift: list[Any] = [of_structure(e, run, "spectral_drift") for run in ("sft_3ep", "grpo")]
    angle: list[Any] = [of_structure(e, run, "angle") for run in ("sft_3ep", "grpo")]
    turning = ratio("turning of leading directions, SFT / GRPO", m.ratio, *angle)
    return [ratio("spectral drift, SFT / GRPO", m.ratio, *drift), turning]


def scored(a: str, b: str, tasks: Sequence[str] = (IN_DOMAIN,), want: str = "above") -> Judge:
    return lambda e, m: [higher(e, m, a, b, tasks, want)]


FOUR = "mean of GPQA, MMLU, MMLU-Pro and IFEval (prompts), those there are"
TRAINING, SCORES, KL, WEIGHTS = "training", "benchmarks", "distributions", "weights"
FREEZING, TRACING, TITLE, RATE = "freezing", "causal tracing", "amplify or replace", "learning rate and data"
RAZOR, RETAINING, SUBNETWORKS, PATH = "RL's Razor", "Retaining by Doing", "Small Subnetworks", "The Path Not Taken"
OWN = "not in the paper: a control"

CLAIMS = (
    Claim("GRPO's accuracy and format rewards rise", "section 3.1, figure 1", TRAINING,
          "mean of the last tenth of the steps − of the first, both rewards, above zero", rewards_rise),
    Claim("SFT trains smoothly: loss falls, gradient-norm spikes are rare", "section 3.2, figure 2", TRAINING,
          "loss of the first tenth of the steps / of the last above 1; fewer steps than the limit with a gradient norm "
          "above 3 × the median of the 21 around them", sft_is_smooth),
    Claim("GRPO is less stable than SFT", "sections 3.1, 3.2 and 6", TRAINING,
          "share of steps with a gradient-norm spike, GRPO − SFT (3 epochs), above zero", grpo_is_less_stable),
    Claim("GRPO is expensive, SFT cheap", "sections 3.1 and 6", TRAINING,
          "floating-point operations of a step for each question it asks, GRPO / SFT, above 1", grpo_costs_more),
    Claim("Completion lengths remain stable throughout GRPO", "appendix B.3", TRAINING,
          "mean tokens of a completion, last tenth of the steps / first, within the margin", lengths_stay),
    Claim("GRPO gives modest gains in domain", "abstract; section 3.3, figure 3", SCORES,
          "MATH-500, GRPO − base, above zero and below the limit",
          lambda e, m: slight(e, m, "grpo", BASE, (IN_DOMAIN,))),
    Claim("SFT gives larger gains in domain, after 3 epochs", "abstract; section 3.3, figure 3", SCORES,
          "MATH-500, SFT (3 epochs) − GRPO, above zero", scored("sft_3ep", "grpo")),
    Claim("Three epochs of SFT exacerbate the trend of one", "section 3.3, figure 3", SCORES,
          f"MATH-500, 3 − 1 epochs, and {FOUR}, 1 − 3 epochs, both above zero", epochs_exacerbate),
    Claim("GSM8k drops, slightly under GRPO and more under SFT", "section 3.3, figure 3", SCORES,
          "base − GRPO and GRPO − SFT (3 epochs) on GSM8k, both above zero",
          lambda e, m: [higher(e, m, BASE, "grpo", ("gsm8k",)), higher(e, m, "grpo", "sft_3ep", ("gsm8k",))]),
    Claim("GRPO degrades knowledge-intensive benchmarks slightly", "abstract; section 3.3, figure 3", SCORES,
          f"{FOUR}: base − GRPO above zero and below the limit", lambda e, m: slight(e, m, BASE, "grpo", KNOWLEDGE)),
    Claim("SFT degrades knowledge-intensive benchmarks more than GRPO", "abstract; section 3.3, figure 3", SCORES,
          f"{FOUR}: base − SFT (3 epochs) and GRPO − SFT (3 epochs), both above zero", forgets_more(KNOWLEDGE)),
    Claim("The same without IFEval", "section 3.3, figure 3", SCORES,
          "mean of GPQA, MMLU and MMLU-Pro, those there are: base − SFT (3 epochs) and GRPO − SFT (3 epochs), both "
          "above "
          "zero", forgets_more(WITHOUT_IFEVAL)),
    Claim("On GPQA Diamond the trend is reversed", "section 3.3", SCORES,
          "GPQA Diamond, SFT (3 epochs) − GRPO, above zero", scored("sft_3ep", "grpo", ("gpqa_diamond",))),
    Claim("AIME24 stays out of reach of base and fine-tuned models", "section 3.3, figure 3", SCORES,
          "AIME24, each score below the limit", aime_is_too_hard),
    Claim("KL is much larger under SFT than under GRPO", "section 4.1, figure 4", KL,
          "all positions, last checkpoints: SFT (3 epochs) / GRPO beyond “much”", kl_is_larger),
    Claim("KL grows early under SFT and gradually under GRPO", "section 4.1, figure 4", KL,
          "share of its last KL that a run has after a quarter of its steps, SFT (3 epochs) / GRPO, above 1",
          kl_grows_early),
    Claim("KL reaches a plateau under SFT", "section 4.1, figure 4", KL,
          "last checkpoint / that after three quarters of the steps, within the margin", kl_plateaus("sft_3ep")),
    Claim("KL reaches a plateau under GRPO", "section 4.1, figure 4", KL,
          "last checkpoint / that after three quarters of the steps, within the margin", kl_plateaus("grpo")),
    Claim("SFT changes the weights much more than GRPO", "section 4.2.2, figures 5 and 6", WEIGHTS,
          "relative change, mean over layers and the seven projections: SFT (3 epochs) / GRPO beyond “much”",
          sft_changes_more),
    Claim("Queries and keys change most under GRPO", "abstract; section 4.2.1, figure 5", WEIGHTS,
          "means over layers, paired: q and k over each of the other five, all ten above 1",
          leads("grpo", [name for name in PROJECTIONS if name not in QUERY_KEY])),
    Claim("Queries and keys change most under SFT", "abstract; section 4.2.2, figure 6", WEIGHTS,
          "means over layers, paired: q and k over each of the other five, all ten above 1",
          leads("sft_3ep", [name for name in PROJECTIONS if name not in QUERY_KEY])),
    Claim("Values and outputs change less than queries and keys under GRPO", "section 4.2.1, figure 5", WEIGHTS,
          "means over layers, paired: q and k over v and o, all four above 1", leads("grpo", VALUE_OUTPUT)),
    Claim("Values and outputs change less than queries and keys under SFT", "section 4.2.2, figure 6", WEIGHTS,
          "means over layers, paired: q and k over v and o, all four above 1", leads("sft_3ep", VALUE_OUTPUT)),
    Claim("Query and key updates are largest in middle layers under GRPO", "section 4.2.1, figure 5", WEIGHTS,
          "mean of q and k: middle half of the layers / first quarter and / last quarter, both above 1",
          in_the_middle("grpo")),
    Claim("Query and key updates are largest in middle layers under SFT", "section 4.2.2, figure 6", WEIGHTS,
          "mean of q and k: middle half of the layers / first quarter and / last quarter, both above 1",
          in_the_middle("sft_3ep")),
    Claim("SFT changes mid-layer MLPs more", "abstract; section 4.2.2, figure 6", WEIGHTS,
          "gate, up and down: middle half of the layers / first quarter under SFT (3 epochs), and that over the same "
          "under GRPO, both above 1", sft_changes_middle_mlps),
    Claim("Training only queries and keys leaves MATH-500 below the base", "section 5.1, figure 7", FREEZING,
          "MATH-500, base − SFT on q and k, above zero", scored(BASE, "sft_qk_only")),
    Claim("Training only queries and keys limits the fit to the training data", "section 5.1, figure 7", FREEZING,
          "MATH-500, SFT (3 epochs) − SFT on q and k, above zero", scored("sft_3ep", "sft_qk_only")),
    Claim("Training only queries and keys reduces GSM8k less than SFT of all weights",
          "section 5.1, figure 7", FREEZING,
          "GSM8k, SFT on q and k − SFT (3 epochs), above zero", scored("sft_qk_only", "sft_3ep", ("gsm8k",))),
    Claim("Training only queries and keys worsens every other benchmark", "section 5.1, figure 7", FREEZING,
          "base − SFT on q and k, above zero on each of GPQA, MMLU, MMLU-Pro and IFEval",
          each(BASE, "sft_qk_only", KNOWLEDGE)),
    Claim("Freezing MLPs leaves MATH-500 stable", "section 5.2, figure 7", FREEZING,
          "MATH-500, MLPs frozen − SFT (3 epochs), within the margin",
          scored("sft_frozen_mlp", "sft_3ep", want="same")),
    Claim("Freezing MLPs slightly mitigates the loss on GSM8k", "section 5.2, figure 7", FREEZING,
          "GSM8k, MLPs frozen − SFT (3 epochs), above zero", scored("sft_frozen_mlp", "sft_3ep", ("gsm8k",))),
    Claim("Freezing MLPs lifts GPQA Diamond above the base model", "section 5.2, figure 7", FREEZING,
          "GPQA Diamond, MLPs frozen − base, above zero", scored("sft_frozen_mlp", BASE, ("gpqa_diamond",))),
    Claim("Freezing MLPs leaves the remaining benchmarks poor", "section 5.2, figure 7", FREEZING,
          "base − MLPs frozen, above zero on each of MMLU, MMLU-Pro and IFEval",
          each(BASE, "sft_frozen_mlp", KNOWLEDGE[1:])),
    Claim("Freezing MLPs is inconclusive: better on some benchmarks, worse on others",
          "abstract; section 5.2", FREEZING,
          "MLPs frozen − SFT (3 epochs): above zero on one benchmark or more and below on another (Bonferroni)",
          freezing_is_inconclusive, mixed=True),
    Claim("Causal tracing finds an early and a late site", "appendix D, figure 12", TRACING,
          "average indirect effect of MLPs, the largest of its layers: at the last subject token above zero, at the "
          "last "
          "token in the upper half above 0.1", sites),
    Claim("GRPO amplifies what the base can do: its gain shrinks with k", "title; section 2.1 and appendix B.1", TITLE,
          "MATH-500, (GRPO − base) at pass@1 − the same at pass@k, k all samples of a question, above zero",
          gain_shrinks_with_k("grpo")),
    Claim("SFT adds what the base cannot do: its gain shrinks less with k", "title", TITLE,
          "MATH-500, (GRPO's gain at pass@1 − at pass@k) − the same of SFT (3 epochs), above zero",
          lambda e, m: [_shrinks_more(e, m)]),
    Claim("GRPO keeps more of the base's right answers than SFT, in domain", "title; section 6", TITLE,
          "MATH-500, share of the base's right answers that stay right, GRPO − SFT (3 epochs), above zero",
          keeps_more("grpo", "sft_3ep", (IN_DOMAIN,))),
    Claim("GRPO keeps more of the base's right answers than SFT, in knowledge", "title; section 6", TITLE,
          f"{FOUR}: share of the base's right answers that stay right, GRPO − SFT (3 epochs), above zero",
          keeps_more("grpo", "sft_3ep", KNOWLEDGE)),
    Claim("At GRPO's learning rate SFT's KL is still much larger", "the authors' unreported run", RATE,
          "last checkpoints, SFT at GRPO's rate / GRPO beyond “much”", further_at_rate("kl")),
    Claim("At GRPO's learning rate SFT still changes the weights much more", "the authors' unreported run", RATE,
          "mean relative change, SFT at GRPO's rate / GRPO beyond “much”", further_at_rate("weights")),
    Claim("The rate makes most of the difference in weights", "the authors' unreported run", RATE,
          "(SFT / SFT at GRPO's rate) / (SFT at GRPO's rate / GRPO), mean relative change, above 1",
          rate_explains("weights")),
    Claim("The rate makes little of the difference in KL", "the authors' unreported run", RATE,
          "(SFT at GRPO's rate / GRPO) / (SFT / SFT at GRPO's rate), last KL, above 1", rate_explains("KL")),
    Claim("At GRPO's learning rate SFT still forgets more", OWN, RATE,
          f"{FOUR}: GRPO − SFT at GRPO's rate, above zero", knowledge_at_rate),
    Claim("At equal gain RL forgets less", "RL's Razor (arXiv 2509.04259)", RAZOR,
          f"{FOUR}: GRPO − the SFT checkpoint whose MATH-500 score is nearest to GRPO's and within the margin, above "
          "zero", at_equal_gain),
    Claim("KL on the new task tells forgetting better than any other measure", "RL's Razor (arXiv 2509.04259)", RAZOR,
          "R² with runs left out of KL on MATH-500 − that of each rival, paired over runs, all above zero",
          kl_tells_most),
    Claim("SFT on the labels nearest to the base forgets as little as RL", "RL's Razor (arXiv 2509.04259)", RAZOR,
          f"{FOUR}: SFT on GRPO's answers − GRPO, within the margin", scored("sft_oracle", "grpo", KNOWLEDGE, "same")),
    Claim("SFT on one's own answers forgets less than on a teacher's",
          "Retaining by Doing (arXiv 2510.18874)", RETAINING,
          f"{FOUR}: SFT on own answers − on the teacher's, above zero", own_answers_forget_less),
    Claim("So it does at GRPO's rate and steps", "Retaining by Doing (arXiv 2510.18874)", RETAINING,
          f"{FOUR}: SFT on own answers − on the teacher's, both at GRPO's rate, above zero",
          scored("sft_own_grpo_rate", "sft_teacher_grpo_rate", KNOWLEDGE)),
    Claim("KL regularisation is not what protects", "Retaining by Doing (arXiv 2510.18874)", RETAINING,
          f"{FOUR}: GRPO with a KL term − GRPO, within the margin", scored("grpo_kl", "grpo", KNOWLEDGE, "same")),
    Claim("RL changes 5-30% of the parameters, SFT far more", "Small Subnetworks (arXiv 2505.11711)", SUBNETWORKS,
          "share of entries unchanged in bfloat16: GRPO between 0.7 and 0.95, and GRPO − SFT (3 epochs) above zero",
          small_subnetwork),
    Claim("RL's updates are of nearly full rank", "Small Subnetworks (arXiv 2505.11711)", SUBNETWORKS,
          "rank at an energy / full rank, mean over matrices, GRPO, over 0.9", nearly_full_rank),
    Claim("Entries that two seeds change overlap beyond chance", "Small Subnetworks (arXiv 2505.11711)", SUBNETWORKS,
          "shared changed entries in bfloat16, GRPO, − those of unrelated sets as large, above zero", overlaps),
    Claim("RL's sparsity is made by rounding to bfloat16", "The Path Not Taken (arXiv 2511.08567)", PATH,
          "share of entries unchanged under GRPO, in bfloat16 − as stored, above zero", sparsity_is_rounding),
    Claim("SFT distorts the spectrum, RL keeps it", "The Path Not Taken (arXiv 2511.08567)", PATH,
          "spectral drift and turning of the leading directions, SFT (3 epochs) / GRPO, both above 1", sft_distorts),
)  # fmt: skip


def _shrinks_more(e: Evidence, m: Margins) -> Part:
    grpo, sft = sampled(e, "grpo"), sampled(e, "sft_3ep")
    k = min(grpo.draws, sft.draws)
    if k < 2:
        raise NotRun(f"{task_name(IN_DOMAIN)} was answered once a question; pass@k needs several samples")
    terms = [(1, at_k(grpo, 1)), (-1, at_k(grpo, k)), (-1, at_k(sft, 1)), (1, at_k(sft, k))]
    return Part(f"pass@1 − pass@{k}, GRPO − SFT (3 epochs)", linear([terms]), m.score)
