"""Models and files that others made: copied, checked, and given the named chat template."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from scalpel.artifact.identity import sha256_file
from scalpel.base_model import import_model
from scalpel.chat import load_tokenizer, template_text
from scalpel.errors import UserError
from scalpel.evaluation.questions import prepare
from scalpel.fetch import to_parquet


def copy(source, target, leave_out=()):
    target.mkdir()
    for path in source.iterdir():
        if path.name not in leave_out:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_local_model_gets_the_named_template(tiny_base, tmp_path):
    source = copy(tiny_base, tmp_path / "source", ("generation_config.json",))
    own = "{{ messages[0]['content'] }}"
    (source / "chat_template.jinja").write_text(own)
    ours, hashes = template_text("scalpel_vs_hammer"), {"config.json": sha256_file(source / "config.json")}
    import_model(source, tmp_path / "model", ours, {}, hashes)
    assert load_tokenizer(tmp_path / "model").chat_template == ours
    with pytest.raises(UserError, match="does not show what the assistant says"):
        import_model(source, tmp_path / "own", None, {})
    assert sha256_file(tmp_path / "model" / "model.safetensors") == sha256_file(tiny_base / "model.safetensors")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["do_sample"] is True


def test_what_cannot_be_a_base_model_is_named(tiny_base, tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        import_model(tmp_path, tmp_path / "out", None, {})
    pickled = copy(tiny_base, tmp_path / "pickled", ("model.safetensors",))
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no \.safetensors weights"):
        import_model(pickled, tmp_path / "out", None, {})
    with pytest.raises(UserError, match="changed since the run was planned"):
        import_model(tiny_base, tmp_path / "out", None, {}, {"config.json": "0" * 64})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_a_damaged_file_of_a_model_is_named(name, tiny_base, tmp_path):
    source = copy(tiny_base, tmp_path / "source")
    (source / name).write_bytes((source / name).read_bytes()[:40])
    with pytest.raises(UserError, match=f"{source}.*"):
        import_model(source, tmp_path / "out", template_text("scalpel_vs_hammer"), {})


def test_hub_jsonl_becomes_what_prepare_reads(tmp_path):
    """IFEval lies on the hub as jsonl with nested arguments whose keys differ per row."""
    rows = [
        {
            "prompt": "p",
            "instruction_id_list": ["length_constraints:number_words"],
            "kwargs": [{"num_words": 3, "relation": "at least"}],
        },
        {"prompt": "q", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    ]
    path = tmp_path / "ifeval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare({"format": "ifeval"}, {"questions": to_parquet(path)}, tmp_path)
    read = pq.read_table(tmp_path / "questions.parquet").to_pylist()
    assert [json.loads(row["kwargs__json"]) for row in read] == [row["kwargs"] for row in rows]


def test_hub_csv_becomes_parquet(tmp_path):
    path = tmp_path / "gpqa.csv"
    columns = ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
    path.write_text(",".join(columns) + '\n"Why, then?",a,b,c,d\n')
    prepare({"format": "gpqa"}, {"questions": to_parquet(path)}, tmp_path)
    assert pq.read_table(tmp_path / "questions.parquet").to_pylist()[0]["Question"] == "Why, then?"
