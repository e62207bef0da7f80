"""Damage is noticed by the stage that reads it, before anything is computed: one bit, swaps, edits, half a list."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalpel.artifact import checking
from scalpel.artifact.checking import checked, checked_folder
from scalpel.artifact.step import Step, record_recipe
from scalpel.errors import UserError
from tests.finished import finish

ROOT = Path(__file__).resolve().parent.parent


def flip(path: Path) -> None:
    """One bit of the last byte."""
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


@pytest.fixture
def result(tmp_path):
    return finish(Step("order", "o", 1, {"seed": 1}), tmp_path, {"a.txt": "a", "sub/b.txt": "b"})


def test_files_of_a_whole_result_pass(result, tmp_path):
    assert checked(result / "sub" / "b.txt").read_text() == "b" and checked_folder(result) == result
    (tmp_path / "loose.txt").write_text("x")
    assert checked(tmp_path / "loose.txt")  # of no result


def test_every_kind_of_damage_is_one_sentence(result):
    for damage, words in (
        (lambda: flip(result / "sub" / "b.txt"), "b.txt is not what its manifest says"),
        (lambda: (result / "sub" / "b.txt").unlink(), "b.txt is missing"),
        (lambda: (result / "sub" / "b.txt").write_text(""), "b.txt is not what its manifest says"),
    ):
        damage()
        with pytest.raises(UserError, match=words):
            checked_folder(result)
    (result / "new.txt").write_text("x")
    with pytest.raises(UserError, match=r"new\.txt is not listed in the manifest"):
        checked(result / "new.txt")


def test_a_file_is_hashed_once_and_again_when_it_changed(result, monkeypatch):
    read = []
    monkeypatch.setattr(
        checking, "sha256_file", lambda path, inner=checking.sha256_file: read.append(path) or inner(path)
    )
    for _ in range(3):
        checked(result / "a.txt")
    assert len(read) == 1
    (result / "a.txt").write_text("b")
    with pytest.raises(UserError):
        checked(result / "a.txt")


# ---------------------------------------------------------------- the stages


@pytest.fixture
def results(tiny_base, tiny_data, tmp_path) -> dict[str, Path]:
    """base, data, order, a run of two checkpoints and a question set, all finished."""
    from scalpel.evaluation.questions import prepare

    world = tiny_base.parents[1] / "world" / "evaluation"
    (tmp_path / "set").mkdir()
    prepare({"format": "math"}, {"questions": world / "math_500.parquet"}, tmp_path / "set")
    steps = {
        "base": Step("base", "b", 1, {"of": "test"}),
        "data": Step("data", "d", 1, {"of": "test"}),
        "questions": Step("questions", "math_500", 1, {"of": "test"}),
    }
    steps["order"] = Step("order", "o", 1, {"seed": 3, "epochs": 1}, {"data": steps["data"]})
    steps["checkpoints"] = Step("train", "t", 1, {"of": "test"}, {"base": steps["base"]})
    listing = [{"index": i, "step": i, "path": f"checkpoints/step-{i:06d}"} for i in (1, 2)]
    files = {
        "base": {"model": tiny_base},
        "data": {"kept.parquet": tiny_data[0]},
        "order": {"order.parquet": tiny_data[1]},
        "questions": {path.name: path for path in (tmp_path / "set").iterdir()},
        "checkpoints": {item["path"]: tiny_base for item in listing} | {"checkpoints.json": json.dumps(listing)},
    }
    made = {role: finish(step, tmp_path, files[role]) for role, step in steps.items()}
    return made | {"root": tmp_path, "steps": steps}


def program(
    stage: str, results: dict, roles: dict[str, str], recipe: dict, settings: dict
) -> subprocess.CompletedProcess:
    step = Step(stage, "x", 1, recipe, {role: results["steps"][name] for role, name in roles.items()}, settings)
    record_recipe(step, results["root"])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"scripts.{stage}", str(results["root"] / step.directory)]
    done = subprocess.run(command, cwd=results["root"], env=environment, capture_output=True, text=True)
    assert not (results["root"] / step.manifest).exists()
    return done


PAIR = {"base": "base", "checkpoints": "checkpoints"}
KL = ("kl", PAIR | {"questions": "questions"}, {"prompts": 2, "max_tokens": 500}, {"threads": 1})
WEIGHTS = ("weight_change", PAIR, {}, {"threads": 1})
TASKS = {
    "math_500": {"shots": 0, "samples": 1, "max_new_tokens": 4, "limit": 1, "formulation": "letters", "prompt": None}
}
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "seed": 42, "inference": "transformers"}
EVALUATE = (
    "evaluate", {"checkpoints": "checkpoints", "questions/math_500": "questions"},
    {"tasks": TASKS, "checkpoints": [1, 2]} | SAMPLING, {"batch_size": 4},
)  # fmt: skip
SFT = {"method": "sft", "learning_rate": 1e-3, "epochs": 1, "checkpoints": 1, "sequences_per_step": 4}
TRAIN = ("train", {"base": "base", "data": "data", "order": "order"}, SFT, {})
ORDER = ("order", {"data": "data"}, {"seed": 9, "epochs": 1}, {})


def swap(results: dict) -> None:
    """The two checkpoints, one bit apart, in each other's place."""
    a, b = (results["checkpoints"] / "checkpoints" / f"step-00000{i}" for i in (1, 2))
    flip(a / "model.safetensors")
    a.rename(a.with_name("c"))
    b.rename(a)
    a.with_name("c").rename(b)


DAMAGES = [
    ("kl", KL, lambda r: flip(r["base"] / "model" / "model.safetensors")),
    ("kl", KL, lambda r: flip(r["checkpoints"] / "checkpoints" / "step-000002" / "model.safetensors")),
    ("kl", KL, swap),
    ("kl", KL, lambda r: flip(r["questions"] / "questions.parquet")),
    ("weight_change", WEIGHTS, lambda r: flip(r["checkpoints"] / "checkpoints" / "step-000001" / "model.safetensors")),
    ("weight_change", WEIGHTS, lambda r: (p := r["checkpoints"] / "checkpoints.json").write_text(
        json.dumps(json.loads(p.read_text())[:1]))),
    ("evaluate", EVALUATE, lambda r: flip(r["questions"] / "questions.parquet")),
    ("evaluate", EVALUATE, lambda r: flip(r["checkpoints"] / "checkpoints" / "step-000002" / "model.safetensors")),
    ("evaluate", EVALUATE, lambda r: flip(r["checkpoints"] / "checkpoints" / "step-000001" / "tokenizer.json")),
    ("train", TRAIN, lambda r: flip(r["data"] / "kept.parquet")),
    ("train", TRAIN, lambda r: flip(r["order"] / "order.parquet")),
    ("train", TRAIN, lambda r: flip(r["base"] / "model" / "model.safetensors")),
    ("order", ORDER, lambda r: flip(r["data"] / "kept.parquet")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "job", "damage"), DAMAGES, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(DAMAGES)]
)
def test_the_stage_that_reads_damage_stops(name, job, damage, results):
    """Files of the same size that load without complaint: each stage computed on them once."""
    damage(results)
    done = program(job[0], results, *job[1:])
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "is not what its manifest says" in line
