"""The cost of a plan recomputed by brute force, and the printed arithmetic checked number by number."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from scalpel.config.load import load
from scalpel.config.scale import GPU
from scalpel.config.training import Trainable
from scalpel.cost.estimate import BUSY, WRITING, Cost, Known, Row, estimate
from scalpel.cost.render import render
from scalpel.cost.shape import Shape, shape_of
from scalpel.errors import UserError
from scalpel.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
# Seven training GPUs and one for the server, whatever the scale says.
SHARED_NODE = {"train_settings": {"ranks": 7, "engine": "zero2", "gradient_checkpointing": True, "server": {"gpus": 1}}}


def plan(root: Path, overrides: dict | None = None, scale: str = "cluster") -> Plan:
    return Plan(load({"scale": scale, "overrides": overrides or {}}, WORKFLOW), WORKFLOW, root)


def base(plan: Plan):
    return next(step for step in plan.steps.values() if step.stage == "base")


def data(plan: Plan):
    return next(step for step in plan.steps.values() if step.stage == "data")


def cost_of(plan: Plan) -> Cost:
    return estimate(plan)


def row(cost: Cost, stage: str, name: str = "") -> Row:
    return next(row for row in cost.rows if (row.stage, row.name) == (stage, name))


# ---------------------------------------------------------------- the model's size


@pytest.mark.parametrize("study", ["scalpel_vs_hammer_full", "sft_then_rl", "sft_then_rl_other_model"])
def test_the_papers_have_a_cost_before_anything_is_fetched(study, tmp_path):
    cost = estimate(Plan(load({"scale": "cluster", "studies": [study]}, WORKFLOW), WORKFLOW, tmp_path))
    assert 1000 < cost.gpu_hours < cost.reserved
    assert {row.stage for row in cost.rows} >= {"fetch", "data", "train", "evaluate", "kl", "weight_change"}


def test_two_base_models_of_one_run_s_name(tmp_path):
    studies = ["sft_then_rl", "sft_then_rl_other_model"]
    planned = Plan(load({"scale": "cluster", "studies": studies}, WORKFLOW), WORKFLOW, tmp_path)
    cost = estimate(planned)
    names = [row.name for row in cost.rows if row.stage == "train"]
    assert len(names) == len(set(names)) and {"sft.s42 (qwen2_5_math_7b)", "sft.s42 (llama3_1_8b)"} <= set(names)
    long = row(cost, "train", "luffy")
    assert 48 < long.longest < 72 and long.again == 2 and long.reserved == 3 * 24 * 8
    llama = next(s for s in planned.steps.values() if (s.stage, s.name) == ("base", "llama3_1_8b"))
    shape, _ = shape_of(llama, tmp_path)
    assert shape.parameters == 8_030_261_248  # the model's own card: 8.03B


def test_parameters_of_the_papers_model(tmp_path):
    shape, _ = shape_of(base(plan(tmp_path)), tmp_path)
    assert shape.parameters == pytest.approx(7.30e9, rel=0.01)

    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    with torch.device("meta"):  # the architecture itself, without memory
        model = Olmo2ForCausalLM(
            Olmo2Config(
                vocab_size=100352, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                num_attention_heads=32, tie_word_embeddings=False,
            )
        )  # fmt: skip
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "trainable",
    [
        Trainable(),
        Trainable(only=("q_proj", "k_proj"), also_lm_head=True),
        Trainable(freeze_mlp_layers=(1,)),
    ],
)
def test_parameters_of_a_saved_model_are_those_of_its_tensors(tiny_base, trainable):
    from scalpel.methods.freezing import is_trainable

    shape = Shape.of_config(json.loads((tiny_base / "config.json").read_text()))
    with safe_open(tiny_base / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118 (no iterator)
    assert shape.parameters == sum(sizes.values())
    assert shape.trained(trainable) == sum(n for name, n in sizes.items() if is_trainable(name, trainable))


def test_an_unknown_model_is_not_guessed(tmp_path):
    unknown = {"kind": "hub", "repo": "someone/Some-8B", "revision": "0" * 40}
    other = plan(tmp_path, {"models": {"some": unknown}, "model": "some"})
    with pytest.raises(UserError, match="make fetch"):
        shape_of(base(other), tmp_path)
    fetched = tmp_path / base(other).inputs["fetch"].directory / "files"
    fetched.mkdir(parents=True)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    (fetched / "config.json").write_text(json.dumps(sizes | {"vocab_size": 10, "tie_word_embeddings": True}))
    assert shape_of(base(other), tmp_path)[0].parameters == 10 * 8 + 2 * (4 * 64 + 3 * 128 + 2 * 8) + 8


# ---------------------------------------------------------------- hours, by brute force


def test_sft_hours_by_brute_force(tmp_path):
    """Step by step and sequence by sequence, every multiplication of forward, recomputation and backward."""
    p = plan(tmp_path, SHARED_NODE)
    n, flops, left = 7_298_617_344, 0, 69_132
    while left:
        for _ in range(min(448, left)):
            forward = 2 * n * 2048
            flops += forward + forward + 2 * forward  # forward, again for the checkpointing, backward
        left -= min(448, left)
    seconds = flops / (7 * GPU().bfloat16 * BUSY)
    found = row(cost_of(p), "train", "sft_1ep")
    assert found.gpu_hours == pytest.approx(seconds / 3600 * 8)  # the server's GPU is held as well
    assert found.kept.value == 20 * n * 2
    assert found.running.value == 3 * 16 * n
    assert found.reserved == p.resources_of_stage("train").runtime / 60 * 8


def test_grpo_hours_by_brute_force(tmp_path):
    p = plan(tmp_path, SHARED_NODE)
    n, writing, training = 7_298_617_344, 0, 0
    for _ in range(571):
        for _ in range(16 * 28):
            writing += 2 * n * 750
            training += (2 + 2 + 4) * n * (150 + 750)
    seconds = writing / (1 * GPU().bfloat16 * WRITING) + training / (7 * GPU().bfloat16 * BUSY)
    assert row(cost_of(p), "train", "grpo").gpu_hours == pytest.approx(seconds / 3600 * 8)


def test_a_server_without_a_gpu_costs_as_one_with_one(tmp_path):
    """On CPUs there are none to count; the plan is still made."""
    without = {"train_settings": SHARED_NODE["train_settings"] | {"server": {"gpus": 0}}}
    found = [cost_of(plan(tmp_path, overrides)) for overrides in (without, SHARED_NODE)]
    assert row(found[0], "train", "grpo").hours == row(found[1], "train", "grpo").hours


def test_frozen_weights_need_no_gradient_of_their_own(tmp_path):
    part = {"method": "sft", "epochs": 3, "trainable": {"only": ["q_proj", "k_proj"]}}
    raw = {"scale": "cluster", "overrides": SHARED_NODE, "runs": {"part": part}}
    cost = cost_of(Plan(load(raw, WORKFLOW), WORKFLOW, tmp_path))
    whole, part = row(cost, "train", "sft_3ep"), row(cost, "train", "part")
    n, trained = 7_298_617_344, 32 * 2 * 4096 * 4096
    assert part.gpu_hours / whole.gpu_hours == pytest.approx((6 * n + 2 * trained) / (8 * n))


def test_evaluation_and_kl_by_brute_force(tmp_path):
    p = plan(tmp_path, {"evaluation": {"tasks": {"mmlu": {"limit": 100}}}} | SHARED_NODE)
    cost, n = cost_of(p), 7_298_617_344
    read = 30 * 183 + 500 * 150 + 1319 * (80 + 6 * 159) + 198 * 280 + 100 * (80 + 6 * 101)
    read += 12032 * (80 + 6 * 174) + 541 * 126
    written = (30 + 500 + 1319 + 198 + 541) * 2048
    one = (2 * n * read / (GPU().bfloat16 * BUSY) + 2 * n * written / (GPU().bfloat16 * WRITING)) / 3600
    found = row(cost, "evaluate")
    shards = p.config.studies["scalpel_vs_hammer"].setting.evaluation_shards
    assert found.jobs == 1 + 6 * shards
    assert found.gpu_hours == pytest.approx((1 + 4 * 20 + 2 * 5) * one)  # two runs are evaluated at five checkpoints
    assert found.longest == pytest.approx(20 / shards * one)
    assert row(cost, "kl").gpu_hours == pytest.approx((5 * 21 + 11) * 500 * 355 * 2 * n / (67e12 * BUSY) / 3600)


@pytest.mark.parametrize("scale", ["laptop", "workstation", "gpu", "cluster"])
def test_every_printed_number_follows_from_its_printed_formula(tmp_path, scale):
    text = render(cost_of(plan(tmp_path, SHARED_NODE if scale == "cluster" else None, scale)))
    arithmetic = text.split("Arithmetic of each row\n")[1]
    lines = re.sub(r"\n {4}", " ", arithmetic).splitlines()  # wrapped lines joined again
    checked = 0
    for line in lines:
        for formula, result in re.findall(r"(?:= |read |written )([-+x/(). \de]+) = ([\d.e]+)", line):
            assert eval(formula.replace("x", "*")) == pytest.approx(float(result), rel=2e-4, abs=1e-3), line
            checked += 1
    assert checked >= (25 if scale != "laptop" else 8)


def test_totals_add_up(tmp_path):
    cost = cost_of(plan(tmp_path))
    assert sum(row.jobs for row in cost.rows) == len(plan(tmp_path).steps)
    assert cost.peak > cost.least > cost.kept > (5 * 20 + 10) * 2 * 7_298_617_344
    total = next(line for line in render(cost).splitlines() if line.startswith("total"))
    assert f"{cost.gpu_hours:,.1f}" in total and f"{cost.reserved:,.0f}" in total


def test_a_finished_data_result_is_exact_and_finished_steps_cost_nothing(tmp_path):
    p = plan(tmp_path)
    before = row(cost_of(p), "train", "sft_1ep")
    made = tmp_path / data(p).directory
    made.mkdir(parents=True)
    pq.write_table(pa.table({"tokens": [1000, 3000, 5000], "prompt_tokens": [100, 100, 130]}), made / "kept.parquet")
    (made / "manifest.json").write_text("{}")
    assert Known(p).kept(data(p)).sizes == (3, 3000, 110)
    cost = cost_of(p)
    assert row(cost, "train", "sft_1ep").hours.value / before.hours.value == pytest.approx(9000 / (69_132 * 2048))
    assert cost.finished == 1 and all(r.stage != "data" for r in cost.rows)
    for step in p.steps.values():
        (tmp_path / step.directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / step.directory / "manifest.json").write_text("{}")
    assert not cost_of(p).rows
    assert "Nothing to pay for" in render(cost_of(p))
