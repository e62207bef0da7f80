"""FLOPs: measured on sampled steps without changing what is trained, counted from what went through the model, and the
published accounting."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM

from scalpel.grading.grader import Grader
from scalpel.methods import loop, meter
from scalpel.methods.meter import Counter, Meter, sampled_steps
from tests.test_methods import GRPO, REUSING, SFT, train


@pytest.mark.parametrize(
    ("steps", "per_batch", "count", "expected"),
    [
        (100, 1, 4, {13, 38, 63, 88}),
        (16, 4, 2, {5, 6, 7, 8, 13, 14, 15, 16}),
        (11, 4, 3, set(range(1, 12))),
        (3, 1, 4, {1, 2, 3}),
        (100, 1, 0, set()),
    ],
)
def test_sampled_steps_are_whole_batches_spread_over_the_run(steps, per_batch, count, expected):
    found = sampled_steps(steps, per_batch, count)
    batches = {(step - 1) // per_batch for step in found}
    assert found == {s for s in range(1, steps + 1) if (s - 1) // per_batch in batches}
    assert len(batches) == min(count, -(-steps // per_batch))
    assert found == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["training", "inference"])
def test_the_counter_finds_what_torch_s_own_does(kind, attention, tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base, attn_implementation=attention)
    ids = torch.randint(0, 400, (3, 17))

    def work():
        if kind == "training":
            model(ids, labels=ids).loss.backward()
        else:
            with torch.inference_mode():
                model(ids)

    with Counter() as ours:
        work()
    aten = torch.ops.aten
    of_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, v, *_, out_shape, **__: sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=of_cpu) as theirs:
        work()
    assert ours.total == theirs.get_total_flops() > 0


@pytest.fixture(scope="module")
def measured(tiny_base, tiny_data, tmp_path_factory):
    """Runs with the meter, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grader, "grade_many", graded)
        return runs_of(tiny_base, tiny_data, tmp_path_factory)


def graded(self, pairs):
    """The tiny model never answers a question: a third of what it writes is called right, so there is a gradient."""
    return [len(text) % 3 == 0 for _, text in pairs]


def runs_of(tiny_base, tiny_data, tmp_path_factory):
    outs = {}
    for name, recipe in {"sft": SFT, "grpo": GRPO, "reusing": REUSING}.items():
        outs[name] = tmp_path_factory.mktemp(name)
        train(recipe, tiny_base, tiny_data, outs[name])
    return outs


@pytest.mark.parametrize("name", ["sft", "grpo", "reusing"])
def test_measuring_changes_no_weight_and_no_logged_number(name, measured, tiny_base, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "SAMPLED", 0)
    monkeypatch.setattr(Grader, "grade_many", graded)
    train({"sft": SFT, "grpo": GRPO, "reusing": REUSING}[name], tiny_base, tiny_data, tmp_path / "without")
    for path in sorted(measured[name].glob("checkpoints/*/*.safetensors")):
        other = load_file(tmp_path / "without" / path.relative_to(measured[name]))
        assert all(other[key].equal(tensor) for key, tensor in load_file(path).items())
    for file in ("log.parquet", "questions.parquet"):
        assert (measured[name] / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    assert not len(pd.read_parquet(tmp_path / "without" / "flops.parquet"))
    assert len(pd.read_parquet(measured[name] / "flops.parquet"))


def test_each_kind_of_pass_is_measured(measured):
    found = {name: pd.read_parquet(out / "flops.parquet") for name, out in measured.items()}
    assert (found["sft"]["trained"] > 0).all() and not found["sft"][["scored", "written"]].to_numpy().any()
    assert (found["grpo"][["trained", "written"]] > 0).all(axis=None) and not found["grpo"]["scored"].any()
    reusing = found["reusing"].set_index("step")
    first = [step for step in reusing.index if (step - 1) % 4 == 0]
    assert (reusing.loc[first, ["scored", "written"]] > 0).all(axis=None)
    assert not reusing.drop(first)[["scored", "written"]].to_numpy().any(), "later steps of a batch write nothing"


def test_a_run_that_fails_leaves_no_counter_behind(tiny_base, tiny_data, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("in the midst of a measured step")

    monkeypatch.setattr(meter, "sampled_steps", lambda *_: frozenset({1}))
    monkeypatch.setattr(loop, "sampled_steps", lambda *_: frozenset({1}))
    monkeypatch.setattr(loop.MethodTrainer, "after_step", failing)
    before = torch._C._len_torch_dispatch_stack()
    with pytest.raises(RuntimeError, match="in the midst"):
        train(SFT, tiny_base, tiny_data, tmp_path / "run")
    assert torch._C._len_torch_dispatch_stack() == before


def test_an_idle_meter_measures_nothing():
    idle = Meter()
    idle.start(1)
    with idle.phase("written"):
        pass
    assert idle.stop() is None
