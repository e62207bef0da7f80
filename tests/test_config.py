"""Config: every mistake is one sentence that names the field, and for an unknown key the nearest valid one."""

from pathlib import Path

import pytest

from scalpel.config import load
from scalpel.errors import UserError

WORKFLOW = Path(__file__).resolve().parent.parent / "workflow"

MISTAKES = [
    ({"scal": "x"}, "unknown key 'scal'; did you mean 'scale'?"),
    ({"scale": "lap"}, "no scale is called 'lap'; did you mean 'laptop'?"),
    ({"scale": 3}, "scale: input should be a valid string, not 3"),
    ({"studies": ["scalpel_vs_hamer"]}, "did you mean 'scalpel_vs_hammer'?"),
    ({"studies": []}, "name at least one"),
    ({"runs": {"grop": {}}}, "no run is called 'grop'; did you mean 'grpo'?"),
    ({"runs": {"grpo": {"lerning_rate": 1}}}, "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
    ({"runs": {"grpo": {"steps": "x"}}}, "steps: input should be a valid integer"),
    ({"runs": {"grpo": {"steps": -1}}}, "greater than 0, not -1"),
    ({"runs": {"sft_1ep": {"trainable": {"only": ["qproj"]}}}}, "'q_proj'"),
    ({"overrides": {"methods": {"gpro": {}}}}, "unknown key 'methods.gpro'; did you mean 'grpo'?"),
    ({"overrides": {"evaluation": {"tasks": {"mmul": {}}}}}, "did you mean 'mmlu'?"),
    ({"overrides": {"model": {"toy": {"step": 3}}}}, "did you mean 'steps'?"),
    ({"overrides": {"source": {"kind": "parket"}}}, "'parquet'"),
    ({"overrides": {"source": {"kind": "hub", "repo": "a/b", "revision": "main", "files": ["x"]}}}, "revision"),
    ({"overrides": "no"}, "overrides: input should be a valid dictionary, not 'no'"),
]


@pytest.mark.parametrize(("raw", "sentence"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistake_is_one_sentence(raw, sentence):
    with pytest.raises(UserError) as caught:
        load(raw, WORKFLOW)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", ["laptop", "gpu", "cluster"])
def test_scales_are_valid(scale):
    config = load({"scale": scale}, WORKFLOW)
    assert all(recipe.checkpoints == 20 for recipe in config.runs.values())


def test_cluster_recipes_are_the_authors():
    runs = load({"scale": "cluster"}, WORKFLOW).runs
    grpo, sft = runs["grpo"], runs["sft_3ep"]
    assert (grpo.learning_rate, grpo.steps, grpo.generations, grpo.temperature) == (1e-6, 571, 28, 0.6)
    assert (grpo.max_completion_tokens, grpo.max_grad_norm, grpo.beta, grpo.loss_type) == (1500, 0.2, 0.0, "dr_grpo")
    assert grpo.questions_per_step * grpo.generations == sft.sequences_per_step == 16 * 4 * 7
    assert (sft.learning_rate, sft.schedule, sft.warmup, sft.epochs) == (5e-5, "constant_with_warmup", 0.1, 3)


def test_a_run_may_be_given_in_steps_instead_of_epochs():
    assert load({"runs": {"sft_1ep": {"steps": 40}}}, WORKFLOW).runs["sft_1ep"].epochs is None


def test_an_override_of_another_kind_replaces_the_whole():
    config = load({"overrides": {"source": {"kind": "parquet", "path": "x.parquet"}}}, WORKFLOW)
    assert config.scale.source.kind == "parquet"
