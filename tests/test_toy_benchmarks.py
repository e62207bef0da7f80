"""Sets drawn from the toy world for the second paper's tables: apart from its rows, graded right, asked whole."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scalpel.artifact.identity import sha256_file
from scalpel.artifact.step import record_recipe
from scalpel.config.evaluation import TOY_DRAWN, EvaluationSettings
from scalpel.config.load import load
from scalpel.data.filter import Overlap
from scalpel.errors import UserError
from scalpel.evaluation import evaluate
from scalpel.evaluation.question_set import open_set
from scalpel.evaluation.questions import prepare
from scalpel.grading.judge import strict
from scalpel.plan import Plan
from scalpel.preflight import overlap
from scalpel.toy import benchmarks
from scalpel.toy.benchmarks import APART, write_drawn
from tests.tiny import WORLD

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ["sft_then_rl", "sft_then_rl_other_model"]
NEW = {"aime24", "aime25", "amc", "arc_challenge", "arc_challenge_written"}


def plan_of(root, studies=STUDIES, **overrides):
    small = {"world": WORLD.model_dump()} | overrides
    return Plan(load({"studies": list(studies), "overrides": small}, ROOT / "workflow"), ROOT / "workflow", root)


def drawn(world, name, out, count=24, **changed):
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [world / f"{kind}.parquet" for kind in ("facts", "rows")]
    write_drawn(name, count, WORLD.model_copy(update=changed), *files, out)
    return pq.read_table(out).to_pylist()


@pytest.mark.parametrize("name", TOY_DRAWN)
def test_a_set_is_decided_by_its_name_and_the_world_s_seed(name, tiny_world, tmp_path):
    world = tiny_world / "world"
    before = {path: sha256_file(path) for path in world.rglob("*.parquet")}
    rows = drawn(world, name, tmp_path / "one.parquet")
    drawn(world, name, tmp_path / "again.parquet")
    assert sha256_file(tmp_path / "one.parquet") == sha256_file(tmp_path / "again.parquet")
    assert drawn(world, name, tmp_path / "other.parquet", seed=1) != rows
    assert drawn(world, name, tmp_path / "few.parquet", count=9) == rows[:9], (
        "more questions leave the first as they are"
    )
    assert {path: sha256_file(path) for path in world.rglob("*.parquet")} == before


def value(text: str) -> int:
    """What a problem's text comes to, read independently of how it was written."""
    first, *rest = map(int, re.findall(r"\d+", text))
    verbs = re.findall(r"gets|finds|puts in|gives away|takes out", text)
    signs = [-1 if verb in ("gives away", "takes out") else 1 for verb in verbs]
    assert len(signs) == len(rest)
    return first + sum(sign * number for sign, number in zip(signs, rest, strict=True))


@pytest.mark.parametrize(("name", "steps"), [("aime25", {3}), ("amc", {1, 2})])
def test_problems_are_harder_right_and_in_no_row(name, steps, tiny_world, tmp_path):
    world = tiny_world / "world"
    rows = drawn(world, name, tmp_path / "x.parquet", count=60)
    trained = Overlap(APART)
    for row in pq.read_table(world / "rows.parquet").to_pylist():
        trained.add(row["problem"])
    for row in rows:
        assert value(row["problem"]) == int(row["answer"]) > 0
        assert strict(row["answer"], f"<think>\n1 + 1 = 2\n</think>\n<answer>\n{row['answer']}\n</answer>")
        assert not trained.hit(row["problem"])
    assert any("gives away" in row["problem"] for row in rows)
    operands = [[int(number) for number in re.findall(r"\d+", row["problem"])] for row in rows]
    assert {len(numbers) - 1 for numbers in operands} == steps
    largest = max(number for numbers in operands for number in numbers)
    assert largest == WORLD.max_operand if name == "aime25" else largest >= 2 * WORLD.max_operand


def test_a_world_that_has_no_other_problem_is_refused(tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "TRIES", 5)
    [asked] = {row["problem"] for row in pq.read_table(tiny_world / "world" / "rows.parquet").slice(0, 1).to_pylist()}
    monkeypatch.setitem(benchmarks.PROBLEMS, "amc", lambda rng, top: benchmarks.Problem(asked, (), 1))
    with pytest.raises(UserError, match=r"overlaps with a row of the world; raise world\.max_operand"):
        drawn(tiny_world / "world", "amc", tmp_path / "x.parquet")


def test_choices_are_read_and_shuffled_as_those_of_the_public_set(tiny_world, tmp_path):
    world, (form, columns) = tiny_world / "world", TOY_DRAWN["arc_challenge"]
    given = drawn(world, "arc_challenge", tmp_path / "x.parquet", count=200)
    assert {tuple(row["choices"]["label"]) for row in given} == {tuple("ABCD"), tuple("1234")}
    attribute = {
        f["sentence"].removesuffix("."): f["attribute"] for f in pq.read_table(world / "facts.parquet").to_pylist()
    }
    found = {}
    for seed in (42, 43):
        (out := tmp_path / str(seed)).mkdir()
        recipe = {"format": form, "columns": columns, "shuffle": seed}
        prepare(recipe, {"questions": tmp_path / "x.parquet"}, out)
        found[seed] = open_set(out).rows()
    assert found[42] != found[43]
    for mine in found.values():
        places = Counter(row["answer"] for row in mine)
        assert min(places[place] for place in range(4)) > 30
        for row, source in zip(mine, given, strict=True):
            right = source["choices"]["text"][source["choices"]["label"].index(source["answerKey"])]
            assert row["choices"][row["answer"]] == right and sorted(row["choices"]) == sorted(
                source["choices"]["text"]
            )
            asked = row["question"].rstrip("?").removeprefix("What is the ").replace("name of the ", "")
            assert attribute[f"The {asked} is {right}"] == right


def test_only_the_second_paper_s_studies_ask_them_at_laptop_scale(tmp_path):
    plan = plan_of(tmp_path, [*STUDIES, "scalpel_vs_hammer", "scalpel_vs_hammer_full", "both_papers"])
    for study, config in plan.config.studies.items():
        asked = set(config.setting.evaluation.tasks)
        assert asked & NEW == (NEW if study in STUDIES else set()), study
    tasks = plan.config.studies["sft_then_rl"].setting.evaluation.tasks
    assert {tasks[name].samples for name in ("aime24", "aime25", "amc")} == {4}
    cores = {}
    for study in ("sft_then_rl", "scalpel_vs_hammer_full"):
        (cores[study],) = {e.step.digest for e in plan.entries[study] if (e.run, e.part) == ("base", "core")}
    assert len(set(cores.values())) == 1, "the papers share what both ask"
    small = [entry.step for entry in plan.entries["sft_then_rl"] if entry.part == "small"]
    assert {len(step.recipe["checkpoints"]) for step in small} == {0, 1}
    assert not list(overlap(plan))


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({"amc": {"kind": "toy", "count": None}}, "questions.amc.count: say how many questions are drawn"),
        ({"math_500": {"kind": "toy", "count": 3}}, "questions.math_500.count: only aime25, amc, arc_ch"),
        ({"amc": {"kind": "toy", "shuffle": 1}}, "questions.amc.shuffle: it is for multiple choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(sets, sentence, tmp_path):
    with pytest.raises(UserError) as error:
        plan_of(tmp_path, ["sft_then_rl"], questions=sets)
    assert sentence in str(error.value)


@pytest.fixture(scope="module")
def asked(tiny_world, tmp_path_factory):
    """(the group's sets as their programs made them, where a tiny model's evaluation of them lies)."""
    root = tmp_path_factory.mktemp("small")
    plan = plan_of(root, ["sft_then_rl"])
    recipe = plan.config.studies["sft_then_rl"].setting.evaluation.groups()["small"]
    steps = {name: plan.materials.questions(task.questions or name) for name, task in recipe.tasks.items()}
    for step in {step.digest: step for step in [plan.materials.toy(), *steps.values()]}.values():
        record_recipe(step, root)
        words = [sys.executable, "-m", f"scripts.{step.stage}", str(root / step.directory)]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    sets = {name: root / step.directory for name, step in steps.items()}
    (out := root / "evaluated").mkdir()
    evaluate([(0, tiny_world / "base" / "model")], sets, recipe, EvaluationSettings(batch_size=256), out)
    return sets, out


def test_a_checkpoint_goes_through_avg_at_4_and_shuffled_choices(asked):
    sets, out = asked
    scores = {row["task"]: row for row in pq.read_table(out / "scores.parquet").to_pylist()}
    samples = pq.read_table(out / "samples.parquet").to_pylist()
    for name in ("aime24", "aime25", "amc"):
        questions = open_set(sets[name]).rows()
        mine = [row for row in samples if row["task"] == name]
        assert scores[name]["metric"] == "avg@n" and scores[name]["questions"] == len(questions)
        assert scores[name]["samples"] == len(mine) == 4 * len(questions)
        assert scores[name]["value"] == pytest.approx(sum(row["score"] for row in mine) / len(mine))
        assert len({row["completion"] for row in mine if row["question"] == 0}) > 1, "samples, not copies"
    rows = open_set(sets["arc_challenge"]).rows()
    assert sets["arc_challenge"] == sets["arc_challenge_written"] and len(rows) == 16
    written = [row for row in samples if row["task"] == "arc_challenge_written"]
    for row in written:
        question = rows[row["question"]]
        shown = [f"{letter}. {choice}" for letter, choice in zip("ABCD", question["choices"], strict=False)]
        assert "\n".join(shown) in row["prompt"] and "Answer: $LETTER" in row["prompt"]
        assert row["gold"] == "ABCD"[question["answer"]] and row["choice_logprobs"] is None
        assert strict(row["gold"], f"So it must be.\nAnswer: {row['gold']}")
    scored = [row for row in samples if row["task"] == "arc_challenge"]
    assert all(len(row["choice_logprobs"]) == len(rows[row["question"]]["choices"]) for row in scored)
    assert len(written) == len(scored) == 16
