"""Rows that all sources answer: against a set comparison written out, and what is refused."""

import csv
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalpel.data.common import keep_common
from scalpel.errors import UserError


def rows(path, numbers: list[int], label: str):
    pq.write_table(pa.Table.from_pylist([{"row": n, "trace": f"{label} {n}"} for n in numbers]), path)
    return path


def table(path) -> list[dict]:
    return list(csv.DictReader(open(path)))


@pytest.fixture
def sources(tmp_path):
    chance = random.Random(1)
    numbers = {name: sorted(chance.sample(range(60), 40)) for name in ("own", "base", "grpo")}
    files = {name: rows(tmp_path / f"{name}.parquet", kept, name) for name, kept in numbers.items()}
    return numbers, files, tmp_path


def test_rows_of_its_own_that_all_others_have(sources):
    numbers, files, out = sources
    keep_common(files["own"], {"base": files["base"], "grpo": files["grpo"]}, out)
    kept = pq.read_table(out / "kept.parquet").to_pylist()
    expected = [n for n in numbers["own"] if n in numbers["base"] and n in numbers["grpo"]]
    assert kept == [{"row": n, "trace": f"own {n}"} for n in expected]
    drops = {line["reason"]: int(line["rows"]) for line in table(out / "drops.csv")}
    lacking = [n for n in numbers["own"] if n not in numbers["base"]]
    assert drops["no_answer_base"] == len(lacking) and drops["read"] == 40 and drops["kept"] == len(expected)
    assert drops["no_answer_base"] + drops["no_answer_grpo"] + drops["kept"] == drops["read"]


def test_how_hard_the_kept_questions_were(sources):
    numbers, files, out = sources
    chance = random.Random(2)
    answers = [{"row": n, "sample": s, "correct": chance.random() < 0.5} for n in range(60) for s in range(4)]
    pq.write_table(pa.Table.from_pylist(answers), out / "answers.parquet")
    keep_common(files["own"], {"base": files["base"]}, out, out / "answers.parquet")
    kept = set(numbers["own"]) & set(numbers["base"])
    for line in table(out / "shares.csv"):
        of = [n for n in range(60) if sum(a["correct"] for a in answers if a["row"] == n) == int(line["right"])]
        assert int(line["questions"]) == len(of) and int(line["kept"]) == sum(n in kept for n in of)
        assert float(line["share"]) == int(line["right"]) / 4


def test_nothing_in_common_is_refused(sources, tmp_path):
    _, files, out = sources
    far = rows(tmp_path / "far.parquet", [100, 101], "far")
    with pytest.raises(UserError, match=r"none of 40 questions .*\(lacking, first source: far 40\)"):
        keep_common(files["own"], {"far": far}, out)
    assert not (out / "kept.parquet").exists()
