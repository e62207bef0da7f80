"""The toy world: the real schemas, the real flaws, and the same bytes for the same seed."""

import pyarrow.parquet as pq

from scalpel.artifact.identity import sha256_file
from scalpel.chat import SYSTEM_PROMPT, load_tokenizer, token_ids
from scalpel.toy.world import ROW_SCHEMA, write_world
from tests.tiny import WORLD


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


def test_tokenizer_round_trip_and_digits(tiny_base):
    tokenizer = load_tokenizer(tiny_base)
    for text in ("12 + 7 = 19", "<think>\nÄ  ß 漢字 🙂\n</think>", SYSTEM_PROMPT):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer("2026", add_special_tokens=False)["input_ids"]) == 4
    tags = tokenizer("<answer>\n5\n</answer>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tags, skip_special_tokens=True) == "<answer>\n5\n</answer>"
    assert token_ids(tokenizer, "q", "a")[-1] == tokenizer.eos_token_id
