"""What a run's libraries are told: the same as in training, by the libraries' own classes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scalpel.config.load import load
from scalpel.errors import UserError
from scalpel.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"


@pytest.fixture(autouse=True)
def _environment():
    """Arguments of an engine come with variables of the environment, which no other test is to see."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def told(run: str, **raw) -> dict:
    from scripts.show import find, shown

    plan = Plan(load(raw, WORKFLOW), WORKFLOW, Path("."))
    return shown(plan, plan.run(*find(plan, run), 42))


def test_the_paper_s_run_on_its_cluster():
    """Facts of the authors' recipe files: 7 ranks, 448 completions a step, ZeRO-2 in bfloat16 without offload."""
    parts = told("grpo", scale="cluster")
    trl, deepspeed = parts["TRL: GRPOConfig"], parts["DeepSpeed"]
    assert deepspeed["train_batch_size"] == 448 and deepspeed["zero_optimization"]["stage"] == 2
    assert "offload_optimizer" not in deepspeed["zero_optimization"] and deepspeed["bf16"] == {"enabled": True}
    assert trl["learning_rate"] == 1e-6 and trl["max_steps"] == 571 and trl["num_generations"] == 28
    assert trl["loss_type"] == "dr_grpo" and trl["beta"] == 0 and trl["use_cpu"] is False and trl["bf16"] is True
    assert trl["per_device_train_batch_size"] * trl["gradient_accumulation_steps"] * 7 == 448
    assert parts["vLLM: LLM"]["dtype"] == "bfloat16" and not parts["vLLM: LLM"]["enforce_eager"]
    assert parts["vLLM: environment"]["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert parts["vLLM: SamplingParams"]["temperature"] == 0.6 and parts["vLLM: SamplingParams"]["max_tokens"] == 1500
    assert told("grpo", scale="cluster", as_published="code")["vLLM: SamplingParams"]["top_k"] == 50
    assert (
        told("scalpel_vs_hammer/sft_3ep", scale="cluster")["TRL: SFTConfig"]["max_steps"] == 463
    )  # 462.9: the last is partial


def test_sharded_gradients_are_told():
    parts = told("relift", scale="cluster", studies=["sft_then_rl"])["TRL: GRPOConfig"]
    assert parts["accelerator_config"]["gradient_accumulation_kwargs"] == {"sync_each_batch": True}


def test_told_is_what_training_passes(tiny_base, tiny_data, tmp_path, monkeypatch):
    """Every argument shown at laptop scale is the one that the trainer of a real run was built with."""
    from scalpel.methods import sft_trainer
    from tests.test_methods import SFT, train

    built, inner = [], sft_trainer.arguments
    monkeypatch.setattr(sft_trainer, "arguments", lambda *given: built.append(inner(*given)) or built[-1])
    train(SFT, tiny_base, tiny_data, tmp_path / "run")
    shown = told("sft_1ep")["TRL: SFTConfig"]
    assert set(shown) == set(built[0]) - {"output_dir"}


def test_one_sentence_for_what_is_not_there():
    with pytest.raises(UserError, match="no run is named 'grp'; did you mean 'grpo'"):
        told("grp")
    command = [sys.executable, "-m", "scripts.show", "sft_matchd"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no run is named 'sft_matchd'; did you mean")


def test_the_output_is_yaml():
    command = [sys.executable, "-m", "scripts.show", "grpo", "--scale", "cluster"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = [yaml.safe_load(part.partition("\n")[2]) for part in done.stdout.split("\n# ")]
    assert len(parts) >= 6 and all(isinstance(part, dict) for part in parts)
