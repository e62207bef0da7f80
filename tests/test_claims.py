"""Claims: each comes out every way, and degenerate results make it untestable, never an error."""

import json
import math
import random
import re

import numpy as np
import pytest
import yaml

from scalpel import claims
from scalpel.claims.evidence import measured, published
from scalpel.claims.judge import (
    ABSENT,
    APPEARS,
    UNTESTABLE,
    Evidence,
    Lacking,
    Score,
    changes,
    difference,
    kl_growth,
    middle_over_early,
    score,
    sign,
    tenths,
)
from scalpel.claims.scalpel_vs_hammer import CLAIMS, MLP
from scalpel.errors import UserError
from scalpel.exhibits.results import PROJECTIONS, Results
from scalpel.exhibits.uncertainty import binomial_error, standard_error
from tests import synthetic
from tests.synthetic import STUDY
from tests.test_exhibits import DEGENERATE, parquet, plain_scores, world

PUBLISHED = synthetic.WORKFLOW / "published" / f"{STUDY}.yaml"
KNOWLEDGE = ("mmlu", "mmlu_pro", "gpqa_diamond", "ifeval_prompt")


def layers(projections, values) -> dict[str, list[float]]:
    return {projection: list(values) for projection in projections}


def evidence(**changed) -> Evidence:
    """Evidence in which every claim but the last appears; `changed` replaces whole fields."""
    flat, hump = [1.0, 1.0, 1.0, 1.0], [1.0, 1.5, 1.5, 1.0]
    small = layers(PROJECTIONS, [value * 0.9 for value in hump]) | layers(MLP, flat)
    small |= layers(("q_proj", "k_proj"), [1.0, 2.0, 2.0, 1.0])
    large = layers(PROJECTIONS, [5 * value for value in hump])
    large |= layers(("q_proj", "k_proj"), [10 * value for value in hump])
    levels = {  # MATH-500, GSM8k, knowledge
        "base": (0.30, 0.80, 0.60),
        "grpo": (0.38, 0.76, 0.55),
        "sft_1ep": (0.36, 0.70, 0.40),
        "sft_3ep": (0.45, 0.60, 0.30),
        "sft_frozen_mlp": (0.30, 0.65, 0.70),
        "sft_qk_only": (0.30, 0.75, 0.50),
    }
    scores = {
        run: {"math_500": Score(m, 0.01), "gsm8k": Score(g, 0.01), "aime24": Score(0.0, 0.0)}
        | {task: Score(k, 0.01) for task in KNOWLEDGE}
        for run, (m, g, k) in levels.items()
    }
    fields = {
        "scores": scores,
        "kl": {
            "grpo": {25: 0.02, 50: 0.04, 75: 0.06, 100: 0.08},
            "sft_3ep": {25: 0.9, 50: 1.0, 75: 1.0, 100: 1.1},
        },
        "change": {"grpo": small, "sft_3ep": large},
        "log": {
            "grpo": {
                "accuracy_reward": list(np.linspace(0.3, 0.9, 40)),
                "format_reward": list(np.linspace(0.5, 1, 40)),
            },
            "sft_3ep": {"loss": list(np.linspace(2, 0.5, 40)), "grad_norm": [1.0] * 40},
        },
    }
    return Evidence(**(fields | changed))


def with_scores(**runs) -> Evidence:
    """Evidence with single scores replaced, e.g. grpo={"math_500": 0.9}."""
    whole = evidence().scores
    for run, values in runs.items():
        whole[run] = whole[run] | {task: Score(value, 0.01) for task, value in values.items()}
    return evidence(scores=whole)


def swapped(field, a="grpo", b="sft_3ep") -> Evidence:
    found = getattr(evidence(), field)
    return evidence(**{field: found | {a: found[b], b: found[a]}})


def changed(run, **projections) -> Evidence:
    found = evidence().change
    return evidence(change=found | {run: found[run] | projections})


def logged(run, **columns) -> Evidence:
    found = evidence().log
    return evidence(log=found | {run: found[run] | columns})


CONTRARY = {  # claim -> evidence in which it does not appear
    "GRPO's accuracy": logged("grpo", accuracy_reward=[0.5] * 40),
    "SFT trains smoothly": logged("sft_3ep", grad_norm=[1.0, 1.0, 1.0, 9.0] * 10),
    "GRPO gives modest": with_scores(grpo={"math_500": 0.9}),
    "SFT gives larger": with_scores(grpo={"math_500": 0.9}),
    "Three epochs": with_scores(sft_1ep=dict.fromkeys(KNOWLEDGE, 0.1)),
    "GSM8k drops": with_scores(grpo={"gsm8k": 0.9}),
    "SFT degrades knowledge": with_scores(sft_3ep=dict.fromkeys(KNOWLEDGE, 0.9)),
    "AIME24": with_scores(grpo={"aime24": 0.4}),
    "KL grows": swapped("kl"),
    "SFT changes the weights": swapped("change"),
    "Queries and keys change most under GRPO": changed("grpo", v_proj=[9.0] * 4),
    "Queries and keys change most under SFT": changed("sft_3ep", v_proj=[90.0] * 4),
    "Query and key updates": changed("grpo", q_proj=[4.0, 1.0, 1.0, 4.0]),
    "SFT changes mid-layer": changed("sft_3ep", **layers(MLP, [9.0, 1.0, 1.0, 9.0])),
    "Training only queries": with_scores(sft_qk_only={"math_500": 0.9}),
    "Freezing MLPs is": with_scores(sft_frozen_mlp=dict.fromkeys(("math_500", "gsm8k", "aime24", *KNOWLEDGE), 0.9)),
    "Freezing MLPs lifts": with_scores(sft_frozen_mlp={"gpqa_diamond": 0.2}),
}


def claim(start: str):
    return next(claim for claim in CLAIMS if claim.text.startswith(start))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_claim_comes_out_every_way(claim):
    assert claim.outcome(Evidence()).verdict == UNTESTABLE
    if claim.text.startswith("Causal tracing"):
        assert claim.outcome(evidence()).verdict == UNTESTABLE
        return
    assert claim.outcome(evidence()).verdict == APPEARS, claim.outcome(evidence())
    contrary = next(found for start, found in CONTRARY.items() if claim.text.startswith(start))
    assert claim.outcome(contrary).verdict == ABSENT, claim.outcome(contrary)


def test_a_difference_within_its_error_is_not_told_from_noise():
    assert sign(Score(0.05, 0.03)) == 0 and sign(Score(0.07, 0.03)) == 1 and sign(Score(-0.07, 0.03)) == -1
    assert sign(Score(0.0, 0.0)) == 0
    outcome = claim("SFT gives larger").outcome(with_scores(sft_3ep={"math_500": 0.385}))
    assert outcome.verdict == UNTESTABLE and "noise" in outcome.measured


def test_shallow_models_have_no_middle_layers():
    shallow = {run: layers(PROJECTIONS, [1.0, 2.0]) for run in ("grpo", "sft_3ep")}
    assert "2 layers" in claim("SFT changes mid-layer").outcome(evidence(change=shallow)).measured


def test_the_paper_s_own_numbers_pass_what_it_reports_most_clearly():
    numbers = yaml.safe_load(PUBLISHED.read_text())
    json.dumps(numbers)
    found = {claim.text: claim.outcome(published(numbers)).verdict for claim in CLAIMS}
    for start in ("KL grows", "SFT changes the weights", "Queries and keys change most under GRPO", "SFT degrades"):
        assert [verdict for text, verdict in found.items() if text.startswith(start)] == [APPEARS]
    assert published(numbers).scores["grpo"]["math_500"] == Score(0.402, binomial_error(0.402, 500))


def test_published_numbers_are_those_of_the_fact_sheet(shared_data):
    facts = yaml.safe_load((shared_data.parent / "facts" / "published-numbers.yaml").read_text())["scalpel_vs_hammer"]
    numbers = yaml.safe_load(PUBLISHED.read_text())
    assert numbers["benchmarks"] == facts["benchmarks"]
    assert numbers["weight_change"] == facts["norm_diff_final"]
    for ours, theirs in (("grpo", "grpo"), ("sft_3ep", "sft_3ep"), ("sft_lr_1e-6", "sft_lr_matched_1e-6")):
        curve = numbers["kl"][ours]
        assert dict(zip(curve["steps"], curve["values"], strict=True)) == facts["kl_base_to_checkpoint"][theirs]


# ---------------------------------------------------------------- evidence from results


def evidence_of(made) -> Evidence:
    plan, root = made
    return measured(Results.of_entries([entry.record() for entry in plan.entries[STUDY]], root / "results"))


def test_evidence_joins_seeds(tmp_path):
    made = world(tmp_path, {"overrides": {"seeds": [1, 2, 3]}})
    found = evidence_of(made)
    finals = [plain_scores(made, "grpo", seed).loc[(100, "math_500")] for seed in (1, 2, 3)]
    values, errors = [f["value"] for f in finals], [f["stderr"] for f in finals]
    assert found.scores["grpo"]["math_500"] == pytest.approx((np.mean(values), standard_error(values, errors)))
    assert found.scores["grpo"]["math_500"].stderr > np.mean(errors)
    kl = parquet(made, "kl", "sft_3ep", "kl.parquet").query("step == 105")
    assert found.kl["sft_3ep"][105] == pytest.approx(kl.groupby("seed")["kl"].mean().mean())
    change = parquet(made, "weight_change", "grpo", "weight_change.parquet")
    expected = change.query("step == 100 and projection == 'v_proj'").groupby("layer")["relative"].mean()
    assert found.change["grpo"]["v_proj"] == pytest.approx(expected.tolist())
    log = parquet(made, "train", "grpo", "log.parquet").groupby("step")["accuracy_reward"].mean()
    assert found.log["grpo"]["accuracy_reward"] == pytest.approx(log.tolist())
    assert "accuracy_reward" not in found.log["sft_3ep"], "each method logs columns of its own"
    assert {claim.outcome(found).verdict for claim in CLAIMS} == {APPEARS, ABSENT, UNTESTABLE}


@pytest.mark.parametrize("edit", DEGENERATE, ids=lambda edit: edit.__name__)
def test_degenerate_results_decide_nothing_by_accident(tmp_path, edit):
    evidence = evidence_of(world(tmp_path, edit=edit))
    found = {claim.text: claim.outcome(evidence) for claim in CLAIMS}
    assert all("nan" not in outcome.measured for outcome in found.values())

    def verdict(start: str) -> str:
        return next(outcome.verdict for text, outcome in found.items() if text.startswith(start))

    if edit.__name__ == "nothing_changed":
        for start in ("KL grows", "SFT changes", "Queries and keys", "Query and key", "SFT changes mid-layer"):
            assert verdict(start) == UNTESTABLE
        assert any("changed no weight" in outcome.measured for outcome in found.values())
    if edit.__name__ == "all_equal":
        assert verdict("GRPO's accuracy") == ABSENT and verdict("SFT trains") == ABSENT
        assert verdict("SFT gives larger") == verdict("SFT degrades") == verdict("Freezing MLPs is") == UNTESTABLE
    if edit.__name__ == "one_checkpoint":
        assert verdict("KL grows") == verdict("GRPO's accuracy") == UNTESTABLE
    if edit.__name__ == "one_question":
        assert verdict("SFT gives larger") == UNTESTABLE, "one question has a wide error, not none"
    if edit.__name__ == "nan_scores":
        for start in ("GRPO gives", "SFT gives", "GSM8k", "SFT degrades", "KL grows", "SFT trains", "Freezing MLPs is"):
            assert verdict(start) == UNTESTABLE


ODD = (0.0, 1.0, -1e-12, 1e-100, 1e100, math.nan, math.inf, -math.inf)


def odd_evidence(seed: int) -> Evidence:
    """Evidence in which some of everything is missing, empty, zero, equal or no number."""
    rng = random.Random(seed)

    def odd(value):
        return rng.choice(ODD) if rng.random() < 0.5 else value

    def some(found: dict) -> dict:
        return {key: value for key, value in found.items() if rng.random() < 0.9}

    whole = evidence()
    return Evidence(
        scores=some({run: some({t: Score(odd(s.value), odd(s.stderr)) for t, s in found.items()})
                     for run, found in whole.scores.items()}),
        kl=some({run: some({step: odd(value) for step, value in curve.items()}) for run, curve in whole.kl.items()}),
        change=some({run: some({p: [odd(v) for v in layers[: rng.choice((0, 1, 4, 4, 4))]] for p, layers in c.items()})
                     for run, c in whole.change.items()}),
        log=some({run: some({name: [odd(v) for v in values[: rng.choice((0, 1, 9, 40))]] for name, values in c.items()})
                  for run, c in whole.log.items()}),
    )  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_a_claim_is_never_an_error_and_never_decided_by_what_is_no_number(claim):
    for seed in range(400):
        outcome = claim.outcome(odd_evidence(seed))
        assert outcome.verdict in (APPEARS, ABSENT, UNTESTABLE), seed
        assert not re.search(r"\b(nan|inf)\b", outcome.measured), (seed, outcome)


def test_runs_that_are_not_there_make_a_claim_untestable(tmp_path):
    study = synthetic.study_file()
    study = {"title": "s", "runs": {"grpo": study["runs"]["grpo"]}, "claims": STUDY}
    raw = {"overrides": {"studies": {STUDY: None}}}  # what the scale says about runs that are not there
    evidence = evidence_of(world(tmp_path, raw, workflow=synthetic.workflow_with(tmp_path, study)))
    found = {claim.text: claim.outcome(evidence) for claim in CLAIMS}
    assert found["GRPO's accuracy and format rewards rise"].verdict == APPEARS
    assert found["GRPO gives modest gains in domain"].verdict in (APPEARS, ABSENT)
    assert found["SFT changes the weights much more than GRPO"].measured == (
        "the weight change of sft_3ep was not measured."
    )


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: score(evidence(), "luffy", "math_500"), "run luffy was not evaluated"),
        (lambda: score(evidence(), "grpo", "amc"), "benchmark amc is not part of this scale"),
        (lambda: difference(with_scores(grpo={"gsm8k": math.nan}), "base", "grpo", ("gsm8k",)), "grpo on gsm8k"),
        (lambda: changes(changed("grpo", v_proj=[math.nan] * 4), "grpo"), "a weight change of grpo is not a number"),
        (lambda: middle_over_early(evidence(change={"a": {"q_proj": [1.0] * 4}}), "a", MLP), "gate_proj of a"),
        (lambda: middle_over_early(changed("grpo", **layers(MLP, [0, 1, 1, 1])), "grpo", MLP), "changed none of gate"),
        (lambda: kl_growth(evidence(kl={"a": dict.fromkeys(range(5), math.nan)}), "a"), "a KL of a is not a number"),
        (lambda: tenths(logged("grpo", accuracy_reward=[math.nan] * 40), "grpo", "accuracy_reward"), "ten steps"),
    ],
)
def test_what_is_lacking_is_said(ask, sentence):
    with pytest.raises(Lacking, match=sentence):
        ask()


def test_ties_lead_nothing():
    same = evidence(change={run: layers(PROJECTIONS, [1.0] * 4) for run in ("grpo", "sft_3ep")})
    assert claim("Queries and keys change most under GRPO").outcome(same).verdict == ABSENT


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
