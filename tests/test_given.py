"""Checkpoints made elsewhere: a plain TRL output directory, shards, verl's layout, and what is refused."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from scalpel.analysis.weight_change import weight_change
from scalpel.artifact.identity import sha256_file
from scalpel.chat import load_tokenizer, template_text
from scalpel.checkpoints import checkpoints
from scalpel.errors import UserError
from scalpel.given import find_checkpoints, model_files
from scalpel.given_import import read_log, take_in
from scalpel.weights import load_model


def train_with_trl(base: Path, out: Path) -> Path:
    """What TRL's SFTTrainer leaves when it is used as its documentation says, nothing of Scalpel involved."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [{"messages": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": f"{i + 1}."}]}
            for i in range(16)]  # fmt: skip
    SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        processing_class=AutoTokenizer.from_pretrained(base),
        args=SFTConfig(
            output_dir=str(out), max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=4,
            report_to="none", use_cpu=True, learning_rate=1e-3, bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
    ).train()  # fmt: skip
    return out


@pytest.fixture(scope="module")
def trl_output(tiny_base, tmp_path_factory) -> Path:
    return train_with_trl(tiny_base, tmp_path_factory.mktemp("trl"))


def hashes(directory: Path) -> dict:
    found = find_checkpoints(directory, "x")
    return {"files": {str(step): {p.name: sha256_file(p) for p in model_files(path)} for step, path in found.items()}}


def test_a_trl_output_directory_becomes_a_run(trl_output, tiny_base, tmp_path):
    take_in(find_checkpoints(trl_output, "x"), tiny_base, hashes(trl_output), tmp_path, str(trl_output))
    found = checkpoints(tmp_path)
    assert [(c.index, c.step) for c in found] == [(1, 2), (2, 4)]
    for checkpoint in found:
        assert load_tokenizer(checkpoint.path).chat_template == load_tokenizer(tiny_base).chat_template
        mine = load_model(checkpoint.path, "float32").state_dict()
        theirs = load_file(trl_output / f"checkpoint-{checkpoint.step}" / "model.safetensors")
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    log = pq.read_table(tmp_path / "log.parquet").to_pylist()
    assert [row["step"] for row in log] == [1, 2, 3, 4] and all(row["loss"] > 0 and row["tokens"] > 0 for row in log)
    assert all(row["written"] == 0 for row in log), "supervised: nothing was sampled"
    state = json.loads((trl_output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert sum(row["tokens"] for row in log) == max(entry.get("num_tokens", 0) for entry in state)
    weight_change(tiny_base, [(c.step, c.path) for c in found], tmp_path)
    assert set(pq.read_table(tmp_path / "weight_change.parquet").column("step").to_pylist()) == {2, 4}


def test_a_log_of_an_older_trl_and_of_a_resumed_run(tmp_path):
    """rewards/<function> before 0.16; DPO's are no rewards of functions; a resumed SFTTrainer counts tokens from 0."""
    path = tmp_path / "trainer_state.json"
    entry = {"loss": 1.0, "reward": 0.7, "completion_length": 250.5, "rewards/accuracy_reward": 0.5,
             "rewards/format_reward/mean": 0.2, "rewards/chosen": 0.1}  # fmt: skip
    history = [entry | {"step": step, "num_tokens": tokens} for step, tokens in ((10, 1000), (20, 2000), (30, 900))]
    path.write_text(json.dumps({"log_history": history}))
    log = read_log(path, {})
    assert [row["tokens"] for row in log] == [1000, 1000, 900]
    rewards = {name: value for name, value in log[0].items() if name.endswith("_reward")}
    assert rewards == {"accuracy_reward": 0.5, "format_reward": 0.2} and log[0]["completion_length"] == 250.5
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="damaged"):
        read_log(path, {})


def test_which_step_a_model_is_of(tiny_base, tmp_path):
    output = tmp_path / "output"
    for place in (output / "checkpoint-100", output / "checkpoint-200", output):
        shutil.copytree(tiny_base, place, dirs_exist_ok=True)
    assert find_checkpoints(output / "checkpoint-200", "x") == {200: output / "checkpoint-200"}
    assert set(find_checkpoints(output, "x")) == {100, 200}, "the model at the end may be that of the last checkpoint"
    (output / "trainer_state.json").write_text('{"global_step": 200}')
    assert set(find_checkpoints(output, "x")) == {100, 200}
    (output / "trainer_state.json").write_text('{"global_step": 250}')
    assert find_checkpoints(output, "x")[250] == output
    shutil.rmtree(output / "checkpoint-100")
    shutil.rmtree(output / "checkpoint-200")
    assert find_checkpoints(output, "x") == {250: output}


def test_an_adapter_is_called_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("x")
    with pytest.raises(UserError, match="holds an adapter alone; merge it"):
        [model_files(path) for path in find_checkpoints(tmp_path, "x").values()]


def test_weights_are_not_copied_where_they_can_be_linked(trl_output, tiny_base, tmp_path):
    take_in(find_checkpoints(trl_output, "x"), tiny_base, {}, tmp_path, None)
    linked = checkpoints(tmp_path)[0].path / "model.safetensors"
    assert linked.stat().st_ino == (trl_output / "checkpoint-2" / "model.safetensors").stat().st_ino


def test_shards_and_verl_s_layout(tiny_base, tmp_path):
    directory = tmp_path / "verl" / "global_step_10" / "actor" / "huggingface"
    load_model(tiny_base, "float32").save_pretrained(directory, max_shard_size="40KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    take_in(find_checkpoints(tmp_path / "verl", "x"), tiny_base, {}, tmp_path / "out", None)
    (found,) = checkpoints(tmp_path / "out")
    assert found.step == 10 and load_model(found.path, "float32") is not None
    assert not (tmp_path / "out" / "log.parquet").exists()


def test_what_the_config_says_of_a_run_that_left_no_log(tiny_base, tmp_path):
    sizes = {"questions_per_step": 8, "tokens_per_step": 1000}
    take_in({3: tiny_base}, tiny_base, sizes, tmp_path, None)
    log = pq.read_table(tmp_path / "log.parquet").to_pylist()
    assert [(row["step"], row["questions"], row["tokens"]) for row in log] == [(1, 8, 1000), (2, 8, 1000), (3, 8, 1000)]


TURNS = (  # of a template whose turns end in another token than EOS
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|pad|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_a_run_is_asked_by_a_template_of_its_own(tiny_base, tmp_path):
    model = tmp_path / "theirs"
    shutil.copytree(tiny_base, model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((model / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TURNS}]
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several}))
    theirs = template_text("sft_then_rl")
    for number, (recipe, text) in enumerate((({"chat_template": theirs}, theirs), ({"chat_template": None}, TURNS))):
        out = tmp_path / f"out{number}"
        take_in({1: model}, tiny_base, recipe, out, None, model)
        (found,) = checkpoints(out)
        tokenizer = load_tokenizer(found.path)
        assert tokenizer.chat_template == text and tokenizer.get_vocab() == load_tokenizer(tiny_base).get_vocab()
        assert (found.path / "model.safetensors").samefile(model / "model.safetensors")
    ends = json.loads((found.path / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|pad|>")}
    assert load_tokenizer(tiny_base).chat_template != text, "the base model's stays"


def test_a_template_that_nothing_can_be_rendered_by_is_refused(tiny_base, tmp_path):
    for text, sentence in (
        ("{{ x.y.z }}", "does not render"),
        ("{{ messages }}", "is not the beginning"),
        (TURNS.replace("<|pad|>", "."), "does not end in a special token of the base model's"),
    ):
        with pytest.raises(UserError, match=f"the run's `chat_template`.*{sentence}"):
            take_in({1: tiny_base}, tiny_base, {"chat_template": text}, tmp_path / "out", None)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no chat template of its own"):
        take_in({1: tiny_base}, tiny_base, {"chat_template": None}, tmp_path / "out", None, tmp_path / "none")
    (tmp_path / "none" / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged"):
        take_in({1: tiny_base}, tiny_base, {"chat_template": None}, tmp_path / "out", None, tmp_path / "none")


@pytest.fixture
def copy(tiny_base, tmp_path):
    """A checkpoint to spoil: copy(change of its tensors, change of its config)."""

    def make(change=lambda tensors: None, config=lambda values: None) -> Path:
        directory = tmp_path / "spoilt"
        shutil.copytree(tiny_base, directory)
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((directory / "config.json").read_text())
        config(values)
        (directory / "config.json").write_text(json.dumps(values))
        return directory

    return make


def test_what_is_no_checkpoint_of_the_base_model_is_refused(copy, tiny_base, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    for change, config, sentence in (
        (lambda t: t.pop(name), lambda c: None, f"lacks tensor {name}"),
        (lambda t: t.update({name: t[name][:-1].clone()}), lambda c: None, f"tensor {name} has shape"),
        (lambda t: None, lambda c: c.update(hidden_size=64), "hidden_size is 64"),
        (lambda t: None, lambda c: c["rope_parameters"].update(rope_theta=1.0), "rope_theta is 1.0"),
    ):
        spoilt = copy(change, config)
        with pytest.raises(UserError, match=sentence):
            take_in({1: spoilt}, tiny_base, {}, tmp_path / "out", None)
        shutil.rmtree(spoilt)


def test_a_file_that_changed_since_the_plan_is_refused(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "checkpoint-1")
    planned = hashes(tmp_path)
    with open(tmp_path / "checkpoint-1" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(UserError, match="changed since the run was planned"):
        take_in(find_checkpoints(tmp_path, "x"), tiny_base, planned, tmp_path / "out", None)


def test_a_damaged_trainer_state_is_named(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text('{"log_history": 3}')
    with pytest.raises(UserError, match=r"trainer_state\.json is damaged"):
        take_in(find_checkpoints(tmp_path, "x"), tiny_base, {}, tmp_path / "out", None)
