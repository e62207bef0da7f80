"""FLOPs: measured on sampled steps without changing what is trained, counted from what went through the model, and the
published accounting."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM

from scalpel import published
from scalpel.artifact.step import Step
from scalpel.config.training import Trainable, TrainSettings
from scalpel.cost.flops import Multiplied, Published
from scalpel.cost.shape import Shape
from scalpel.exhibits import flops as flops_figure
from scalpel.exhibits import flops_table, spent
from scalpel.exhibits.flops import published as published_rows
from scalpel.exhibits.result import Result
from scalpel.exhibits.style import Style
from scalpel.grading.grader import Grader
from scalpel.methods import loop, meter
from scalpel.methods.freezing import freeze
from scalpel.methods.meter import Counter, Meter, sampled_steps
from tests.finished import finish
from tests.test_methods import GRPO, REUSING, SFT, train

NUMBERS = published.read(Path(__file__).parents[1] / "workflow" / "published" / "sft_then_rl.yaml")


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


def test_products_with_an_output_s_type_are_counted():
    """As TRL's fused head calls them on GPUs: torch's formulas take the type for a shape."""
    one, other, added = torch.zeros(2, 3), torch.zeros(3, 5), torch.zeros(2, 5)
    count = meter.FORMULAS[torch.ops.aten.addmm]
    assert (
        count(added, one, other, torch.float32, out=added, out_val=added) == count(added, one, other) == 2 * 2 * 3 * 5
    )
    assert meter.FORMULAS[torch.ops.aten.mm](one, other, torch.float32, out_val=added) == 2 * 2 * 3 * 5
    batched = torch.zeros(7, 2, 3), torch.zeros(7, 3, 5)
    assert meter.FORMULAS[torch.ops.aten.baddbmm](added, *batched, out_val=None) == 7 * 2 * 2 * 3 * 5


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


def test_heads_that_share_keys_count_as_if_each_had_its_own():
    """torch's own formula refuses them."""
    query = torch.randn(1, 4, 8, 16, requires_grad=True)
    key, value = torch.randn(2, 1, 2, 8, 16, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    with Counter() as shared:
        attention(query, key, value, enable_gqa=True).sum().backward()
    with Counter() as own:
        attention(query, *(x.repeat_interleave(2, 1) for x in (key, value))).sum().backward()
    assert shared.total == own.total == 7 * 2 * 4 * 8 * 8 * 16
    names = {packet.__name__ for packet in meter.FORMULAS if hasattr(packet, "__name__")}
    assert {"_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention_backward"} <= names


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


def test_a_run_that_failed_after_a_checkpoint_ends_with_the_same_measurements(
    measured, tiny_base, tiny_data, tmp_path, monkeypatch
):
    """In the midst of a batch; a step measured after the last state is forgotten and measured again."""
    monkeypatch.setattr(Grader, "grade_many", graded)
    after = loop.MethodTrainer.after_step

    def failing(self, step):
        if step == 6:
            raise RuntimeError("a node died")
        after(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.MethodTrainer, "after_step", failing)
        with pytest.raises(RuntimeError, match="a node died"):
            train(REUSING, tiny_base, tiny_data, tmp_path / "run")
    assert len((tmp_path / "run" / "state" / "flops.jsonl").read_text().splitlines()) == 5, "one after the last state"
    train(REUSING, tiny_base, tiny_data, tmp_path / "run")
    for name in ("flops.parquet", "log.parquet", "rollouts.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (measured["reusing"] / name).read_bytes()


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


# ---------------------------------------------------------------- the paper's accounting


@pytest.mark.parametrize("run", NUMBERS["flops"]["methods"])
def test_the_paper_s_accounting_digit_for_digit(run):
    """Every number of table 6 and appendix B, to the three digits that are printed; one total is off by rounding."""
    of = NUMBERS["flops"]
    parts = Published(**of["methods"][run]).parts(of["parameters"], of["trace_tokens"])
    printed = dict(of["printed_parts"][run])
    if run != "sft_then_rl_short":
        printed["total"] = of["methods"][run]["printed"]
    assert {name: f"{parts[name]:.2e}" for name in printed} == {name: f"{value:.2e}" for name, value in printed.items()}


def test_the_paper_s_rounding_slip():
    """3.63e19 is the sum of two rounded parts; the sum itself rounds to 3.64e19."""
    of = NUMBERS["flops"]
    parts = Published(**of["methods"]["sft_then_rl_short"]).parts(of["parameters"], of["trace_tokens"])
    assert f"{parts['total']:.4e}" == "3.6385e+19" and f"{parts['total']:.2e}" == "3.64e+19"
    rounded = sum(float(f"{parts[name]:.2e}") for name in ("sft", "rl"))
    assert f"{rounded:.2e}" == f"{of['methods']['sft_then_rl_short']['printed']:.2e}" == "3.63e+19"


def test_the_whole_run_is_dearer_than_the_mixed_methods():
    """The efficiency claim is the 50-step run's alone (500 steps: 14.48e19)."""
    of = NUMBERS["flops"]
    short = of["methods"]["sft_then_rl_short"]
    whole = Published(**short | {"steps": 500}).parts(of["parameters"], of["trace_tokens"])["total"]
    assert f"{whole:.3e}" == "1.448e+20"
    assert all(whole > of["methods"][run]["printed"] for run in ("luffy", "relift"))


def test_the_published_sizes_counted():
    """True parameters, prompts, attention and log-probabilities: dearer by a quarter and more, in the same order."""
    rows = {row["run"]: row for row in published_rows(NUMBERS["flops"])}
    assert Shape.of_config(NUMBERS["flops"]["model"]).parameters == pytest.approx(7.6156e9, rel=1e-4)
    assert all(1.2 < row["counted"] / row["paper"] < 2 for row in rows.values())
    assert sorted(rows, key=lambda run: rows[run]["counted"]) == ["sft_then_rl_short", "luffy", "relift"]


# ---------------------------------------------------------------- counted


def test_forward_flops_are_what_torch_counts_but_for_the_squares_of_attention(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base, attn_implementation="eager")
    count = Multiplied.of(Shape.of_config(model.config.to_dict()))
    for length in (1, 7, 30):
        with FlopCounterMode(display=False) as found, torch.no_grad():
            model(torch.zeros(1, length, dtype=torch.long))
        squares = 4 * count.attention * (length * length - length * (length + 1) / 2)
        angles = model.config.hidden_size // model.config.num_attention_heads * length  # of the rotary embedding
        assert found.get_total_flops() == count.forward(0, length) + squares + angles
    assert count.forward(0, 30) == count.forward(0, 12) + count.forward(12, 30), "what is kept is not computed again"


@pytest.mark.parametrize("trainable", [{"only": ("q_proj", "k_proj")}, {"freeze_mlp_layers": (1,)}, {}])
@pytest.mark.parametrize("tied", [False, True])
def test_what_does_not_train_is_not_counted(tiny_base, trainable, tied):
    """A step's FLOPs against torch's count of it. Freezing spares the gradients of matrices, the head's among them."""
    config = AutoConfig.from_pretrained(tiny_base, tie_word_embeddings=tied, attn_implementation="eager")
    model, trainable, length = AutoModelForCausalLM.from_config(config), Trainable(**trainable), 12
    freeze(model, trainable)
    shape = Shape.of_config(config.to_dict())
    count = Multiplied.of(shape)
    embeddings = model.get_input_embeddings()(torch.zeros(1, length, dtype=torch.long)).detach().requires_grad_()
    with FlopCounterMode(display=False) as found:
        model(inputs_embeds=embeddings).logits.sum().backward()
    squares = 4 * count.attention * (length * length - length * (length + 1) / 2)
    angles = config.hidden_size // config.num_attention_heads * length
    share = shape.trained_matrices(trainable) / count.matrices
    assert found.get_total_flops() == pytest.approx(count.trained(length, share) + 3 * squares + angles, rel=1e-9)


def test_layers_that_a_trace_named_are_not_counted_as_trained(tiny_base, tmp_path, monkeypatch):
    shutil.copytree(tiny_base, tmp_path / "model")
    monkeypatch.setattr(spent, "_input", lambda step, role: tmp_path)
    frozen = [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    (tmp_path / "trained.json").write_text(json.dumps({"trained": [], "frozen": frozen}))
    shares = [
        spent._model(tmp_path, {"trainable": trainable}).share
        for trainable in ({"freeze_mlp_above": 0.1}, {"freeze_mlp_layers": [1]}, {})
    ]
    assert shares[0] == shares[1] < shares[2] == 1


@pytest.fixture(scope="module")
def counted(measured, tiny_base, tiny_data, tmp_path_factory):
    """Name -> the directory of the finished train step that such a run would be."""
    root, found = tmp_path_factory.mktemp("counted"), {}
    single = tmp_path_factory.mktemp("single")
    alone = TrainSettings(sequences_per_device=1)
    train(SFT, tiny_base, tiny_data, single, alone)
    base, data = Step("base", "b", 1, {}, {}, {}, {}), Step("data", "d", 1, {}, {}, {}, {})
    finish(base, root, {"model": tiny_base})
    finish(data, root, {"kept.parquet": tiny_data[0]})
    for name, out in (measured | {"single": single}).items():
        recipe = {"sft": SFT, "grpo": GRPO, "reusing": REUSING, "single": SFT}[name].identity() | {"of": name}
        step = Step("train", name, 1, recipe, {"base": base, "data": data}, {}, {})
        files = {path.name: path for path in out.glob("*.parquet")}
        found[name] = finish(step, root, files)
    rows = pd.read_parquet(measured["grpo"] / "flops.parquet")
    rows["written"] = pd.array([None] * len(rows), dtype="Int64")  # as a server's run has it
    rows.to_parquet(single / "served.parquet")
    files = {path.name: path for path in measured["grpo"].glob("*.parquet")}
    files["flops.parquet"] = single / "served.parquet"
    step = Step("train", "served", 1, GRPO.identity() | {"of": "served"}, {"base": base, "data": data}, {}, {})
    return found | {"served": finish(step, root, files)}


def test_without_padding_measured_and_counted_differ_by_attention_alone(counted, tiny_base):
    """Kernels take whole squares of attention, and their backward pass computes the scores once more."""
    step = counted["single"]
    shape = Shape.of_config(AutoModelForCausalLM.from_pretrained(tiny_base).config.to_dict())
    count = Multiplied.of(shape)
    sampled = pd.read_parquet(step / "flops.parquet").set_index("step")["trained"]
    asked = pd.read_parquet(step / "questions.parquet")
    data = next((step.parents[1] / "data").glob("d-*")) / "kept.parquet"
    lengths = asked.join(pd.read_parquet(data).set_index("row")["tokens"], on="row").groupby("step")["tokens"]
    for number, flops in sampled.items():
        of = lengths.get_group(number).to_numpy()
        angles = shape.head_size * of  # of the rotary embedding
        expected = (6 * count.matrices * of + 4 * count.attention * of * of * 3.5 + angles).sum()
        again = 2 * shape.vocabulary * shape.hidden * of.sum()  # TRL's loss takes lm_head once more, going back
        assert 0 <= flops - expected <= again


@pytest.mark.parametrize("name", ["sft", "grpo", "reusing"])
def test_counted_and_measured_agree_up_to_padding(name, counted):
    frame = spent.of_run(counted[name])
    assert frame["step"].tolist() == pd.read_parquet(counted[name] / "log.parquet")["step"].tolist()
    for kind in spent.KINDS:
        whole, seen = frame[kind].sum(), frame[f"measured_{kind}"].sum()
        assert (whole == 0) == (kind in {"sft": ("scored", "written"), "grpo": ("scored",), "reusing": ()}[name])
        assert whole == seen == 0 or 0.6 < seen / whole < 3, kind


def test_what_a_server_wrote_is_counted_in_the_measured_total_and_marked(counted):
    rows = [Result("train", name, 1, counted[name]) for name in ("served", "grpo")]
    (served, seen), frame = map(spent.totals, rows), spent.of_run(counted["grpo"])
    assert served["served"] == served["written"] > 0 == seen["served"]
    assert served["measured"] == pytest.approx(
        frame[["measured_trained", "measured_scored"]].to_numpy().sum() + frame["written"].sum()
    )
    results = SimpleNamespace(of=lambda stage: rows, published={})
    table = flops_table.table(results, flops_table.Options()).set_index("run")
    (mark,) = (name for name in table if "as a server wrote it" in name)
    assert table.loc["served", mark] == served["written"] and np.isnan(table.loc["grpo", mark])
    assert (table["measured"] > 0).all()
    options = flops_figure.Options()
    drawn = flops_figure.draw(flops_figure.table(results, options), options, Style({}, ["served", "grpo"], options))
    assert sum(bar.get_hatch() is not None for bar in drawn.axes[0].patches) == 1
    assert any("but for what a server wrote" in text.get_text() for text in drawn.legends[0].get_texts())


def test_without_any_measurement_there_is_no_measured_total(counted, monkeypatch):
    nothing = lambda step, counted: pd.DataFrame(  # noqa: E731
        np.nan, index=counted.index, columns=[f"measured_{kind}" for kind in spent.KINDS]
    )
    monkeypatch.setattr(spent, "_measured", nothing)
    found = spent.totals(Result("train", "grpo", 1, counted["grpo"]))
    assert np.isnan(found["measured"]) and found["served"] == 0


def test_tokens_by_the_paper_s_accounting(counted):
    rollouts = pd.read_parquet(counted["grpo"] / "rollouts.parquet")
    parameters = 8 * rollouts["completion_length"].sum()
    frame = spent.of_run(counted["grpo"])
    assert frame["paper"].sum() % parameters == 0
    assert spent.of_run(counted["reusing"])["paper"].sum() > 0


def test_a_chain_is_counted_whole(counted):
    alone = spent.totals(Result("train", "grpo", 1, counted["grpo"]))
    first = spent.totals(Result("train", "sft", 1, counted["sft"]))
    both = spent.totals(Result("train", "grpo", 1, counted["grpo"], chain=(counted["sft"],)))
    for name in ("paper", "counted", "measured"):
        assert both[name] == pytest.approx(alone[name] + first[name])
        assert np.isfinite(both[name])
