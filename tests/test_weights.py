"""Loading models: what is missing, superfluous or damaged is named, never filled in."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from scalpel.errors import UserError
from scalpel.weights import load_model, replace_weights, weight_files

NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture
def copy(tiny_base, tmp_path):
    """A copy of the tiny base: copy(change) with its tensors changed by a function."""

    def copy(change=lambda tensors: None, name="model"):
        directory = tmp_path / name
        shutil.copytree(tiny_base, directory)
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return copy


def edit(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def lack(tensors):
    del tensors[NORM]


def reshape(tensors):
    tensors[NORM] = tensors[NORM][:-1].clone()


def add(tensors):
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)


BROKEN = [
    (lack, f"tensor {NORM} is missing"),
    (reshape, rf"tensor {NORM} has shape \[31\]"),
    (add, "tensor model.layers.2.mlp.up_proj.weight is none of this model's"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_tensors_that_do_not_fit_are_refused(copy, change, words, dtype):
    with pytest.raises(UserError, match=words):
        load_model(copy(change), dtype)


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_also_when_weights_are_replaced_which_then_stay(copy, tiny_base, change, words):
    model = load_model(tiny_base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def shaken(tensors):
        for tensor in tensors.values():
            tensor += 1
        change(tensors)

    with pytest.raises(UserError, match=words):
        replace_weights(model, copy(shaken))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_are_those_of_the_file_in_the_dtype_asked_for(tiny_base, copy):
    def double(tensors):
        for tensor in tensors.values():
            tensor *= 2

    doubled = copy(double)
    for dtype, held in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_model(tiny_base, dtype)
        assert not model.training and {p.dtype for p in model.parameters()} == {held}
        saved = load_file(tiny_base / "model.safetensors")
        assert all(torch.equal(p, saved[name].to(held)) for name, p in model.named_parameters())
        replace_weights(model, doubled)
        assert all(torch.equal(p, 2 * saved[name].to(held)) for name, p in model.named_parameters())


def test_tied_embeddings_need_no_head_and_may_have_the_same(copy, tiny_base):
    def tie(tensors):
        del tensors["lm_head.weight"]

    def both(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    tied, doubled, untied = copy(tie, "tied"), copy(both, "doubled"), copy(name="untied")
    for directory in (tied, doubled, untied):
        edit(directory, tie_word_embeddings=True)
    model = load_model(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    load_model(doubled)
    replace_weights(model, doubled)
    replace_weights(model, tied)
    with pytest.raises(UserError, match="ties lm_head"):
        load_model(untied)
    with pytest.raises(UserError, match="tie_word_embeddings"):
        replace_weights(load_model(tiny_base), tied)


def test_what_old_versions_saved_beside_the_weights_is_passed_over(copy):
    def old(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    directory = copy(old)
    replace_weights(load_model(directory), directory)


def test_shards(tiny_base, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(weight_files(tmp_path)) > 1
    replace_weights(load_model(tmp_path), tiny_base)
    replace_weights(load_model(tiny_base), tmp_path)
    weight_files(tmp_path)[0].unlink()
    for load in (load_model, lambda path: replace_weights(load_model(tiny_base), path)):
        with pytest.raises(UserError, match="does not load"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
            "does not load",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 100), "does not load"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "safetensors only"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: edit(d, hidden_size="wide"), "does not load"),
        (lambda d: edit(d, model_type="none"), "does not load"),
        (lambda d: edit(d, rms_norm_eps=1e-3), "rms_norm_eps"),
        (lambda d: edit(d, max_position_embeddings=77), "max_position_embeddings"),
    ],
)
def test_damaged_directories_are_named(copy, tiny_base, damage, words):
    directory = copy()
    damage(directory)
    if "_" not in words:  # those with another config load by themselves
        with pytest.raises(UserError, match=words) as error:
            load_model(directory)
        assert str(directory) in str(error.value)
    with pytest.raises(UserError, match=words) as error:
        replace_weights(load_model(tiny_base), directory)
    assert str(directory) in str(error.value)


@pytest.mark.parametrize("method", ["SFT", "GRPO"])
def test_training_refuses_a_start_that_lacks_a_tensor(method, copy, tiny_base, tiny_data, tmp_path):
    from tests import test_methods

    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(UserError, match=f"model does not load .tensor {NORM} is missing"):
        test_methods.train(getattr(test_methods, method), tiny_base, tiny_data, out, start=copy(lack))
