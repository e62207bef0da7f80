"""The toy world: the real schemas, the real flaws, and the same bytes for the same seed."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from scalpel.artifact.files import STATE
from scalpel.artifact.identity import sha256_file
from scalpel.chat import SYSTEM_PROMPT, load_tokenizer, template_text, token_ids
from scalpel.methods.state import COMPLETE
from scalpel.stages import STAGES
from scalpel.toy import model
from scalpel.toy.model import train_base
from scalpel.toy.world import ROW_SCHEMA, write_world
from tests.tiny import MODEL, WORLD

ROOT = Path(__file__).resolve().parent.parent


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


INTERRUPTED = """
import sys
from pathlib import Path
from scalpel.chat import template_text
from scalpel.toy import model
from tests.tiny import MODEL
model.SAVE_SECONDS = 0.0
model.train_base(MODEL, Path(sys.argv[1]), Path(sys.argv[2]), threads=1, template=template_text("scalpel_vs_hammer"))
"""


def test_a_killed_base_model_is_resumed_bitwise(tiny_world, tmp_path, capfd):
    state = tmp_path / STATE
    for _ in range(2):  # kill -9, at another step each time
        there = (state / COMPLETE).read_text() if state.is_dir() else ""
        child = subprocess.Popen([sys.executable, "-c", INTERRUPTED, tiny_world / "world", tmp_path], cwd=ROOT)
        while not state.is_dir() or not (state / COMPLETE).is_file() or (state / COMPLETE).read_text() == there:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    last = len(json.loads((state / COMPLETE).read_text())["log"])
    assert 0 < last < MODEL.steps and not (tmp_path / "model").exists()
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
