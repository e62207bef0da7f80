"""A model's own answers: what is kept and why, the same after any number of kills."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalpel.artifact.identity import sha256_file
from scalpel.chat import control_text, load_tokenizer, template_text, token_ids
from scalpel.config.data import GenerateRecipe
from scalpel.config.evaluation import EvaluationSettings
from scalpel.data.filter import KEPT_SCHEMA
from scalpel.data.generate import generate
from scalpel.errors import UserError
from scalpel.given_import import put_template
from scalpel.grading.grader import Grader
from scalpel.inference import EngineSettings, open_engine
from scalpel.inference.requests import Request

RECIPE = GenerateRecipe(samples=6, max_new_tokens=40)
SETTINGS = EvaluationSettings(batch_size=12)


def made(tiny_data, model, base, out, recipe=RECIPE, settings=SETTINGS, seed=3):
    out.mkdir(parents=True, exist_ok=True)
    generate(tiny_data[0], model, base, recipe, seed, 10_000, settings, out)
    return out


@pytest.fixture(scope="module", autouse=True)
def easily_right():
    """What the tiny base writes is right where the gold answer stands in it: by the real rule nothing is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grader, "grade_many", lambda self, pairs: [gold in completion for gold, completion in pairs])
        yield


@pytest.fixture(scope="module")
def whole(tiny_data, tiny_base, tmp_path_factory) -> Path:
    return made(tiny_data, tiny_base, tiny_base, tmp_path_factory.mktemp("generate"))


def read(path):
    return pq.read_table(path).to_pylist()


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def files(out):
    """sha256 of everything that is part of the result."""
    return {path.name: sha256_file(path) for path in sorted(out.iterdir()) if path.is_file()}


def test_every_answer_is_the_models_checked_and_counted(whole, tiny_data, tiny_base):
    tokenizer, rows, answers = load_tokenizer(tiny_base), read(tiny_data[0]), read(whole / "answers.parquet")
    assert [(a["row"], a["sample"]) for a in answers] == [(r["row"], s) for r in rows for s in range(6)]
    engine = open_engine("transformers", tiny_base, EngineSettings())
    requests = [Request(token_ids(tokenizer, row["problem"]), (3, row["row"]), 6, 40) for row in rows]
    found = [one for mine in engine.complete(requests, 1.0, 1.0) for one in mine]
    gold = {row["row"]: row["answer"] for row in rows}
    with Grader() as grader:
        verdicts = grader.grade_many([(gold[a["row"]], a["completion"]) for a in answers])
    for answer, one, verdict in zip(answers, found, verdicts, strict=True):
        assert answer["completion"] == tokenizer.decode(one.ids, skip_special_tokens=False)
        assert answer["ended"] == (one.end is not None) and answer["tokens"] == len(one.ids) + answer["ended"]
        assert answer["correct"] == (verdict is True)
    assert {a["correct"] for a in answers} == {a["ended"] for a in answers} == {True, False}


def test_the_first_right_answer_that_ended_takes_the_traces_place(whole, tiny_data, tiny_base):
    tokenizer, rows = load_tokenizer(tiny_base), {row["row"]: row for row in read(tiny_data[0])}
    good, right = {}, {}
    for answer in read(whole / "answers.parquet"):
        right[answer["row"]] = right.get(answer["row"], 0) + answer["correct"]
        if answer["correct"] and answer["ended"] and not control_text(tokenizer).search(answer["completion"]):
            good.setdefault(answer["row"], answer["completion"])
    kept = pq.read_table(whole / "kept.parquet")
    assert kept.schema.equals(KEPT_SCHEMA) and [row["row"] for row in kept.to_pylist()] == list(good)
    for row in kept.to_pylist():
        expected = rows[row["row"]] | {"trace": good[row["row"]]}
        assert row == expected | {"tokens": len(token_ids(tokenizer, row["problem"], row["trace"]))}
    drops = {line["reason"]: int(line["rows"]) for line in table(whole / "drops.csv")}
    assert drops["kept"] == len(good) and drops["read"] == len(rows)
    assert drops["no_verified_answer"] == sum(not n for n in right.values())
    assert drops["no_verified_answer"] + drops["special_token"] + drops["too_long"] + drops["kept"] == drops["read"]
    difficulty = table(whole / "difficulty.csv")
    assert [float(line["share"]) for line in difficulty] == pytest.approx([n / 6 for n in range(7)])
    for n, line in enumerate(difficulty):
        mine = [row for row, count in right.items() if count == n]
        assert (int(line["right"]), int(line["questions"])) == (n, len(mine))
        assert int(line["kept"]) == sum(row in good for row in mine)


def test_what_was_spent(whole, tiny_data, tiny_base):
    from scalpel.weights import load_model

    spent = json.loads((whole / "spent.json").read_text())
    parameters = load_model(tiny_base).num_parameters()
    read_, written = sum(row["prompt_tokens"] for row in read(tiny_data[0])), 0
    written = sum(answer["tokens"] for answer in read(whole / "answers.parquet"))
    assert spent == {
        "read_tokens": read_, "written_tokens": written, "parameters": parameters,
        "flops": 2 * parameters * (read_ + written),
    }  # fmt: skip


def test_answers_too_long_are_not_kept(tiny_data, tiny_base, tmp_path, monkeypatch):
    """Where every answer is right, only those that ended are kept."""
    monkeypatch.setattr(Grader, "grade_many", lambda self, pairs: [True] * len(pairs))
    recipe = RECIPE.model_copy(update={"samples": 1, "max_new_tokens": 25})
    out = made(tiny_data, tiny_base, tiny_base, tmp_path, recipe)
    ended = [answer["ended"] for answer in read(out / "answers.parquet")]
    drops = {line["reason"]: int(line["rows"]) for line in table(out / "drops.csv")}
    assert 0 < drops["kept"] <= sum(ended) < len(ended)
    assert drops["kept"] + drops["too_long"] + drops["special_token"] == len(ended)
    control = control_text(load_tokenizer(tiny_base))
    assert drops["special_token"] == sum(
        bool(control.search(answer["completion"])) for answer in read(out / "answers.parquet")
    )


def test_seed_and_model_change_the_answers(whole, tiny_data, tiny_base, other_base, tmp_path):
    first = read(whole / "answers.parquet")
    for number, arguments in enumerate(({"seed": 4}, {"recipe": RECIPE.model_copy(update={"seed": 1})})):
        assert (
            read(made(tiny_data, tiny_base, tiny_base, tmp_path / str(number), **arguments) / "answers.parquet")
            != first
        )
    again = [read(tmp_path / n / "answers.parquet") for n in "01"]
    assert again[0] == again[1]  # the recipe's seed is added to the run's
    try:
        other = read(made(tiny_data, other_base, tiny_base, tmp_path / "other") / "answers.parquet")
        assert other != first
    except UserError:
        pass  # the shaken model may be right nowhere


def test_a_model_is_asked_by_its_own_template(tiny_data, tiny_base, tmp_path, monkeypatch):
    """That of a given run; what is kept is trained on under the base model's, and measured by it."""
    monkeypatch.setattr(Grader, "grade_many", lambda self, pairs: [True] * len(pairs))
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model)
    put_template(model, template_text("sft_then_rl"))
    out = made(tiny_data, model, tiny_base, tmp_path / "out", RECIPE.model_copy(update={"samples": 2}))
    answers, (base, own) = read(out / "answers.parquet"), map(load_tokenizer, (tiny_base, model))
    assert all(answer["completion"].startswith("<think>\n") for answer in answers), "with which its prompts end"
    engine, (row, *_) = open_engine("transformers", model, EngineSettings()), read(tiny_data[0])
    ((first, _),) = engine.complete([Request(token_ids(own, row["problem"]), (3, row["row"]), 2, 40)], 1.0, 1.0)
    assert answers[0]["completion"] == "<think>\n" + own.decode(first.ids, skip_special_tokens=False)
    for kept in read(out / "kept.parquet"):
        assert kept["tokens"] == len(token_ids(base, kept["problem"], kept["trace"]))


def test_no_answer_to_keep_is_an_error(tiny_data, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(Grader, "grade_many", lambda self, pairs: [False] * len(pairs))
    with pytest.raises(UserError, match=r"none of the 14 questions has an answer to keep \(14 have no right"):
        made(tiny_data, tiny_base, tiny_base, tmp_path)


def test_twenty_kills_leave_the_same_files(tiny_data, tiny_base, tmp_path, monkeypatch):
    """Killed as soon as another part is there, and at any moment; a part that was cut short is made again."""
    # The real checker's start would be most of the time.
    monkeypatch.setattr(Grader, "grade_many", lambda self, pairs: [len(text) % 3 == 0 for _, text in pairs])
    recipe, settings = RECIPE.model_copy(update={"samples": 2}), EvaluationSettings(batch_size=2)
    reference = made(tiny_data, tiny_base, tiny_base, tmp_path / "reference", recipe, settings)
    out, rng = tmp_path / "killed", random.Random(1)
    left = []
    for kill in range(20):
        before = parts(out)
        child = os.fork()
        if child == 0:
            made(tiny_data, tiny_base, tiny_base, out, recipe, settings)
            os._exit(0)
        if kill % 2:
            time.sleep(rng.uniform(0, 0.1))
        else:
            while len(parts(out)) == len(before) and os.waitid(os.P_PID, child, os.WEXITED | NOW) is None:
                time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert parts(out) >= before  # nothing finished is lost
        left.append(len(parts(out)))
        if left[-1] == 14:  # go back
            for path in rng.sample(sorted((out / "state").iterdir()), 8):
                path.write_bytes(path.read_bytes()[:-20]) if rng.random() < 0.5 else path.unlink()
    assert any(0 < count < 14 for count in left)
    made(tiny_data, tiny_base, tiny_base, out, recipe, settings)
    assert files(out) == files(reference) and len(parts(out)) == 14


NOW = os.WNOHANG | os.WNOWAIT


def parts(out: Path) -> set[Path]:
    """The parts of the journal that are whole."""
    found = set()
    for path in out.glob("state/answers-*.parquet"):
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            pq.read_metadata(path)
            found.add(path)
    return found
