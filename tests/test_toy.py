"""The toy world: the real schemas, the real flaws, and the same bytes for the same seed."""

import json
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scalpel.artifact.files import STATE
from scalpel.artifact.identity import sha256_file
from scalpel.chat import SYSTEM_PROMPT, load_tokenizer, template_text, token_ids
from scalpel.config.load import load
from scalpel.methods.state import COMPLETE
from scalpel.plan import Plan
from scalpel.stages import STAGES
from scalpel.toy import model
from scalpel.toy.instructions import INSTRUCTIONS, Instruction, fitting, obeyed
from scalpel.toy.model import train_base
from scalpel.toy.world import ROW_SCHEMA, write_world
from tests.tiny import MODEL, WORLD

ROOT = Path(__file__).resolve().parent.parent
CHANCE = {"mmlu": 0.25, "mmlu_pro": 0.1}  # of a blind choice among the options


def hashes(directory) -> dict[str, str]:
    return {str(p.relative_to(directory)): sha256_file(p) for p in directory.rglob("*.parquet")}


def test_same_seed_same_bytes(tiny_world, tmp_path):
    write_world(WORLD, tmp_path / "again")
    write_world(WORLD.model_copy(update={"seed": 1}), tmp_path / "other")
    assert hashes(tmp_path / "again") == hashes(tiny_world / "world") != hashes(tmp_path / "other")


def test_rows_have_the_real_columns_and_flaws(tmp_path):
    write_world(WORLD.model_copy(update={"train_rows": 600}), tmp_path)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.schema == ROW_SCHEMA
    rows = table.to_pylist()
    assert len({row["source"] for row in rows}) == 4
    assert any(not any(row["correctness_math_verify"]) for row in rows)
    assert any(not all(row["is_reasoning_complete"]) for row in rows)
    assert any(row["correctness_llama"] is None for row in rows)
    assert len({row["problem"] for row in rows}) < len(rows)
    asked = {r["problem"].lower() for r in pq.read_table(tmp_path / "evaluation" / "math_500.parquet").to_pylist()}
    assert any(row["problem"].lower() in asked for row in rows)
    assert not any("<answer>" in trace for row in rows for trace in row["generations"])


def test_real_columns_are_those_of_the_real_files(tmp_path, shared_data):
    write_world(WORLD, tmp_path)
    real = {
        "math_500": "math_500/test_000-249.parquet",
        "gsm8k": "gsm8k/test_0000-0659.parquet",
        "mmlu": "mmlu/validation.parquet",
        "mmlu_pro": "mmlu_pro/test.parquet",
        "ifeval": "ifeval/input_data.parquet",
    }
    for name, path in real.items():
        mine = pq.read_schema(tmp_path / "evaluation" / f"{name}.parquet")
        assert set(mine.names) == set(pq.read_schema(shared_data / path).names), name


# ---------------------------------------------------------------- benchmarks that measure something


def follows(asked: Instruction, response: str) -> bool:
    """By the checker of the evaluation."""
    from scalpel.evaluation.ifeval import instructions as checkers

    checker = checkers()[asked.id](asked.id)
    checker.build_description(**asked.arguments)
    return checker.check_following(response)


IGNORANT = (" Dika", "The answer is 7.", "I think it is 7.", "So the answer is $\\boxed{7}$.", "<answer>\n7\n</answer>")


@pytest.mark.parametrize("asked", INSTRUCTIONS, ids=lambda asked: asked.sentence)
def test_an_instruction_is_followed_on_purpose_or_not_at_all(asked):
    """Whatever else is asked, and never by a response that knows nothing of it."""
    assert follows(asked, obeyed(7, [asked]))
    for other in fitting(asked):
        for pair in ([asked, other], [other, asked]):
            assert all(follows(one, obeyed(7, pair)) for one in pair), pair
        assert not follows(asked, obeyed(7, [other])), other
    for response in IGNORANT:
        assert not follows(asked, response), response


def test_some_prompts_of_ifeval_have_two_instructions_that_can_be_followed_apart(tmp_path):
    write_world(WORLD.model_copy(update={"ifeval": 200}), tmp_path)
    rows = pq.read_table(tmp_path / "evaluation" / "ifeval.parquet").to_pylist()
    counts = Counter(len(row["instruction_id_list"]) for row in rows)
    assert counts.keys() == {1, 2} and counts[2] > 40
    assert len({row["kwargs__json"] for row in rows if len(row["instruction_id_list"]) == 2}) > 10
    assert {name for row in rows for name in row["instruction_id_list"]} == {one.id for one in INSTRUCTIONS}
    assert all(len(json.loads(row["kwargs__json"])) == len(row["instruction_id_list"]) for row in rows)


def test_facts_are_heard_of_often_seldom_and_hardly(tmp_path):
    recipe = WORLD.model_copy(update={"facts": 40, "pretraining_samples": 12000})
    write_world(recipe, tmp_path)
    texts = " ".join(row["text"] for row in pq.read_table(tmp_path / "pretraining.parquet").to_pylist())
    heard = [texts.count(row["sentence"]) for row in pq.read_table(tmp_path / "facts.parquet").to_pylist()]
    common, middle, rare = sum(heard[:4]), sum(heard[18:22]), sum(heard[-4:])
    assert common > 5 * middle > 5 * 1.2 * rare > 0


@pytest.mark.campaign
def test_the_laptop_s_base_model_leaves_room_on_every_benchmark(tmp_path):
    """Trained for real: neither at chance nor at the ceiling, so that gains and losses can be seen."""
    (tmp_path / "config.yaml").write_text("{}\n")
    plan = Plan(load({}, ROOT / "workflow"), ROOT / "workflow", tmp_path)
    (evaluated,) = [
        entry.step for entry in plan.entries["scalpel_vs_hammer"] if (entry.stage, entry.run) == ("evaluate", "base")
    ]
    words = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "2", evaluated.manifest]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    rows = pq.read_table(tmp_path / evaluated.directory / "scores.parquet").to_pylist()
    scores = {(row["task"], row["metric"]): row["value"] for row in rows}
    assert len({task for task, _ in scores}) == 5
    for (task, metric), value in scores.items():
        assert CHANCE.get(task, 0.0) + 0.25 < value < 0.92, (task, metric, value)
    assert scores["ifeval", "prompt_level_strict_acc"] < scores["ifeval", "inst_level_strict_acc"]


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from scalpel.chat import template_text
from scalpel.toy import model
from scalpel.toy.instructions import INSTRUCTIONS, Instruction, fitting, obeyed
from tests.tiny import MODEL
model.SAVE_SECONDS = 0.0
save, saved = model.State.save, []
def dying(self, log):
    save(self, log)
    saved.append(len(log))
    if len(saved) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
model.State.save = dying
model.train_base(MODEL, Path(sys.argv[1]), Path(sys.argv[2]), threads=1, template=template_text("scalpel_vs_hammer"))
"""


def test_a_killed_base_model_is_resumed_bitwise(tiny_world, tmp_path, capfd):
    state = tmp_path / STATE
    for saves in ("7", "20"):
        child = [sys.executable, "-c", INTERRUPTED, tiny_world / "world", tmp_path, saves]
        assert subprocess.run(child, cwd=ROOT).returncode == -signal.SIGKILL
    last = len(json.loads((state / COMPLETE).read_text())["log"])
    assert last == 27 < MODEL.steps and not (tmp_path / "model").exists()
    train_base(MODEL, tiny_world / "world", tmp_path, threads=1, template=template_text("scalpel_vs_hammer"))
    assert f"resuming from step {last}" in capfd.readouterr().err
    for file in ("model/model.safetensors", "pretraining_log.parquet"):
        assert sha256_file(tmp_path / file) == sha256_file(tiny_world / "base" / file), file
    assert STAGES["base"].resumable


def test_a_damaged_state_of_a_base_model_is_not_resumed_from(tiny_world, tmp_path, capfd, monkeypatch):
    short = MODEL.model_copy(update={"steps": 8})
    make = partial(train_base, short, tiny_world / "world", threads=1, template=template_text("scalpel_vs_hammer"))
    make(tmp_path / "whole")
    monkeypatch.setattr(model, "SAVE_SECONDS", 0.0)
    make(tmp_path / "damaged")
    (path,) = (tmp_path / "damaged" / STATE).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    make(tmp_path / "damaged")
    assert "damaged" in capfd.readouterr().err
    files = [tmp_path / kind / "model" / "model.safetensors" for kind in ("whole", "damaged")]
    assert sha256_file(files[0]) == sha256_file(files[1])


def test_tokenizer_round_trip_and_digits(tiny_base):
    tokenizer = load_tokenizer(tiny_base)
    for text in ("12 + 7 = 19", "<think>\nÄ  ß 漢字 🙂\n</think>", SYSTEM_PROMPT):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer("2026", add_special_tokens=False)["input_ids"]) == 4
    tags = tokenizer("<answer>\n5\n</answer>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tags, skip_special_tokens=True) == "<answer>\n5\n</answer>"
    assert token_ids(tokenizer, "q", "a")[-1] == tokenizer.eos_token_id
