"""The claims of "Scalpel vs. Hammer", each with its test and threshold."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from scalpel.claims.judge import (
    ABSENT,
    APPEARS,
    SIGMAS,
    UNTESTABLE,
    Claim,
    Evidence,
    Lacking,
    Outcome,
    both,
    changes,
    difference,
    expect_positive,
    kl_growth,
    logged,
    middle_over_early,
    points,
    score,
    sign,
    tenths,
    type_means,
)

IN_DOMAIN = "math_500"
OUT_OF_DOMAIN = ("gpqa_diamond", "mmlu", "mmlu_pro", "ifeval_prompt")  # the paper's knowledge-intensive four
MLP = ("gate_proj", "up_proj", "down_proj")
QUERY_KEY = ("q_proj", "k_proj")


def rewards_rise(evidence: Evidence) -> Outcome:
    parts = []
    for column, name in (("accuracy_reward", "accuracy"), ("format_reward", "format")):
        first, last = tenths(evidence, "grpo", column)
        parts.append(Outcome(APPEARS if last - first > 0.05 else ABSENT, f"{name}: {first:.2f} to {last:.2f}."))
    return both(*parts)


def sft_is_smooth(evidence: Evidence) -> Outcome:
    first, last = tenths(evidence, "sft_3ep", "loss")
    norms = logged(evidence, "sft_3ep", "grad_norm")
    windows = [norms[max(0, i - 10) : i + 11] for i in range(len(norms))]
    spikes = sum(norm > 3 * statistics.median(window) for norm, window in zip(norms, windows, strict=True))
    share = spikes / len(norms)
    verdict = APPEARS if last < first and share <= 0.02 else ABSENT
    return Outcome(verdict, f"loss {first:.2f} to {last:.2f}; {spikes} spikes in {len(norms)} steps ({share:.1%}).")


def modest_grpo_gain(evidence: Evidence) -> Outcome:
    found = difference(evidence, "grpo", "base", (IN_DOMAIN,))
    outcome = expect_positive(found, "GRPO - base:")
    if outcome.verdict == APPEARS and found.value > 0.10:
        return Outcome(ABSENT, f"GRPO - base: {points(found)}: a gain, and not a modest one.")
    return outcome


def larger_sft_gain(evidence: Evidence) -> Outcome:
    return expect_positive(difference(evidence, "sft_3ep", "grpo", (IN_DOMAIN,)), "SFT (3 epochs) - GRPO:")


def epochs_exacerbate(evidence: Evidence) -> Outcome:
    return both(
        expect_positive(difference(evidence, "sft_3ep", "sft_1ep", (IN_DOMAIN,)), "in domain, 3 - 1 epochs:"),
        expect_positive(difference(evidence, "sft_1ep", "sft_3ep", OUT_OF_DOMAIN), "out of domain, 1 - 3 epochs:"),
    )


def gsm8k_drops(evidence: Evidence) -> Outcome:
    return both(
        expect_positive(difference(evidence, "base", "grpo", ("gsm8k",)), "base - GRPO:"),
        expect_positive(difference(evidence, "grpo", "sft_3ep", ("gsm8k",)), "GRPO - SFT (3 epochs):"),
    )


def sft_forgets_more(evidence: Evidence) -> Outcome:
    return both(
        expect_positive(difference(evidence, "base", "sft_3ep", OUT_OF_DOMAIN), "base - SFT (3 epochs):"),
        expect_positive(difference(evidence, "grpo", "sft_3ep", OUT_OF_DOMAIN), "GRPO - SFT (3 epochs):"),
    )


def aime_is_too_hard(evidence: Evidence) -> Outcome:
    found = {run: score(evidence, run, "aime24").value for run in ("base", "grpo", "sft_1ep", "sft_3ep")}
    text = ", ".join(f"{run} {value:.3f}" for run, value in found.items())
    return Outcome(APPEARS if max(found.values()) < 0.10 else ABSENT, f"{text}.")


def kl_early_and_large(evidence: Evidence) -> Outcome:
    sft, sft_early = kl_growth(evidence, "sft_3ep")
    grpo, grpo_early = kl_growth(evidence, "grpo")
    holds = sft >= 3 * grpo and sft_early >= 0.5 and sft_early > grpo_early
    return Outcome(
        APPEARS if holds else ABSENT,
        f"end: SFT {sft:.3g}, GRPO {grpo:.3g} nats (x{sft / grpo:.1f}); "
        f"share after a quarter of the steps: SFT {sft_early:.0%}, GRPO {grpo_early:.0%}.",
    )


def sft_changes_more(evidence: Evidence) -> Outcome:
    means = {run: statistics.fmean(type_means(changes(evidence, run)).values()) for run in ("sft_3ep", "grpo")}
    ratio = means["sft_3ep"] / means["grpo"]
    return Outcome(
        APPEARS if ratio >= 2 else ABSENT,
        f"SFT {means['sft_3ep']:.3g}, GRPO {means['grpo']:.3g}: x{ratio:.1f}.",
    )


def query_key_most(run: str) -> Callable[[Evidence], Outcome]:
    def judge(evidence: Evidence) -> Outcome:
        means = type_means(changes(evidence, run))
        if not {*QUERY_KEY} < means.keys():
            raise Lacking(f"the weight change of {run} was not measured for {' and '.join(QUERY_KEY)} beside others")
        order = sorted(means, key=lambda projection: -means[projection])
        text = ", ".join(f"{projection.removesuffix('_proj')} {means[projection]:.3g}" for projection in order)
        lead = set(order[:2]) == set(QUERY_KEY) and means[order[1]] > means[order[2]]
        return Outcome(APPEARS if lead else ABSENT, f"{text}.")

    return judge


def query_key_in_the_middle(evidence: Evidence) -> Outcome:
    ratios = {run: middle_over_early(evidence, run, QUERY_KEY) for run in ("grpo", "sft_3ep")}
    return Outcome(
        APPEARS if min(ratios.values()) > 1.02 else ABSENT,
        f"middle / early: GRPO {ratios['grpo']:.2f}, SFT {ratios['sft_3ep']:.2f}.",
    )


def sft_changes_middle_mlps(evidence: Evidence) -> Outcome:
    sft, grpo = (middle_over_early(evidence, run, MLP) for run in ("sft_3ep", "grpo"))
    return Outcome(APPEARS if sft >= 1.1 and sft > grpo else ABSENT, f"middle / early: SFT {sft:.2f}, GRPO {grpo:.2f}.")


def query_key_fits_less(evidence: Evidence) -> Outcome:
    return expect_positive(difference(evidence, "sft_3ep", "sft_qk_only", (IN_DOMAIN,)), "all weights - query and key:")


def freezing_is_inconclusive(evidence: Evidence) -> Outcome:
    if "sft_frozen_mlp" not in evidence.scores or "sft_3ep" not in evidence.scores:
        raise Lacking("sft_frozen_mlp or sft_3ep was not evaluated")
    tasks = [task for task in evidence.scores["sft_frozen_mlp"] if task in evidence.scores["sft_3ep"]]
    found = {task: difference(evidence, "sft_frozen_mlp", "sft_3ep", (task,)) for task in tasks}
    better = [task for task in tasks if sign(found[task]) > 0]
    worse = [task for task in tasks if sign(found[task]) < 0]
    text = f"better on {', '.join(better) or 'none'}; worse on {', '.join(worse) or 'none'} of {len(tasks)}"
    if not better and not worse:
        return Outcome(UNTESTABLE, f"{text}; all differences are within {SIGMAS:g} standard errors.")
    return Outcome(APPEARS if better and worse else ABSENT, f"{text}.")


def freezing_helps_gpqa(evidence: Evidence) -> Outcome:
    return expect_positive(difference(evidence, "sft_frozen_mlp", "base", ("gpqa_diamond",)), "MLPs frozen - base:")


def causal_tracing(evidence: Evidence) -> Outcome:
    raise Lacking("causal tracing is not part of this study; the frozen layers are given in the scale's file")


CLAIMS = (
    Claim(
        "GRPO's accuracy and format rewards rise",
        "section 3.1, figure 1",
        "mean of the last tenth of the steps - mean of the first tenth > 0.05, both rewards",
        rewards_rise,
    ),
    Claim(
        "SFT trains smoothly: loss falls, gradient-norm spikes are rare",
        "section 3.2, figure 2",
        "loss lower in the last tenth of the steps than in the first; "
        "at most 2% of the steps above 3 x the median gradient norm of the 21 steps around them",
        sft_is_smooth,
    ),
    Claim(
        "GRPO gives modest gains in domain",
        "section 3.3, figure 3",
        "MATH-500, GRPO - base: above 2 standard errors, and at most 10 points",
        modest_grpo_gain,
    ),
    Claim(
        "SFT gives larger gains in domain, after 3 epochs",
        "section 3.3, figure 3",
        "MATH-500, SFT (3 epochs) - GRPO: above 2 standard errors",
        larger_sft_gain,
    ),
    Claim(
        "Three epochs of SFT exacerbate the trend of one",
        "section 3.3, figure 3",
        "MATH-500 rises and the mean of GPQA, MMLU, MMLU-Pro and IFEval falls from 1 to 3 epochs, "
        "each by more than 2 standard errors",
        epochs_exacerbate,
    ),
    Claim(
        "GSM8k drops, slightly under GRPO and more under SFT",
        "section 3.3, figure 3",
        "base - GRPO and GRPO - SFT (3 epochs): both above 2 standard errors",
        gsm8k_drops,
    ),
    Claim(
        "SFT degrades knowledge-intensive benchmarks more than GRPO",
        "section 3.3, figure 3",
        "mean of GPQA, MMLU, MMLU-Pro and IFEval, those there are: base - SFT (3 epochs) and "
        "GRPO - SFT (3 epochs), both above 2 standard errors",
        sft_forgets_more,
    ),
    Claim(
        "AIME24 stays out of reach of base and fine-tuned models",
        "section 3.3, figure 3",
        "every score below 10%",
        aime_is_too_hard,
    ),
    Claim(
        "KL grows early and far under SFT, gradually and less under GRPO",
        "section 4.1, figure 4",
        "all positions: final KL of SFT (3 epochs) at least 3 x GRPO's; after a quarter of the steps SFT has "
        "at least half of its final KL, and a larger share than GRPO",
        kl_early_and_large,
    ),
    Claim(
        "SFT changes the weights much more than GRPO",
        "section 4.2, figures 5 and 6",
        "relative change, mean over layers and the seven projections: SFT (3 epochs) / GRPO at least 2",
        sft_changes_more,
    ),
    Claim(
        "Queries and keys change most under GRPO",
        "section 4.2.1, figure 5",
        "mean over layers: q and k are the two largest of the seven",
        query_key_most("grpo"),
    ),
    Claim(
        "Queries and keys change most under SFT",
        "section 4.2.2, figure 6",
        "mean over layers: q and k are the two largest of the seven",
        query_key_most("sft_3ep"),
    ),
    Claim(
        "Query and key updates are largest in middle layers",
        "section 4.2, figures 5 and 6",
        "q and k: mean of the middle half of the layers / first quarter > 1.02, GRPO and SFT (3 epochs)",
        query_key_in_the_middle,
    ),
    Claim(
        "SFT changes mid-layer MLPs more",
        "section 4.2.2, figure 6",
        "gate, up and down: mean of the middle half of the layers / first quarter at least 1.1 under SFT "
        "(3 epochs), and larger than under GRPO",
        sft_changes_middle_mlps,
    ),
    Claim(
        "Training only queries and keys limits the fit to the training data",
        "section 5.1, figure 7",
        "MATH-500, SFT on all weights - SFT on q and k: above 2 standard errors",
        query_key_fits_less,
    ),
    Claim(
        "Freezing MLPs is inconclusive: better on some benchmarks, worse on others",
        "section 5.2, figure 7",
        "MLPs frozen - full SFT (3 epochs): above 2 standard errors on one benchmark or more and below on another",
        freezing_is_inconclusive,
    ),
    Claim(
        "Freezing MLPs lifts GPQA Diamond above the base model",
        "section 5.2, figure 7",
        "MLPs frozen - base: above 2 standard errors",
        freezing_helps_gpqa,
    ),
    Claim(
        "Causal tracing finds an early and a late site",
        "appendix D, figure 12",
        "average indirect effect above 0.1 on the last token in upper layers",
        causal_tracing,
    ),
)
