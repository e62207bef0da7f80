"""docs/extend.md: its files written where it says, and used."""

import ast
import csv
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from scalpel.evaluation.questions import prepare
from tests import synthetic
from tests.test_exhibits import make
from tests.test_workflow import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text()
BLOCKS = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", PAGE)
FILES = dict(re.findall(r"(?ms)^`([\w/.]+\.py)`:\n\n```python\n(.*?)^```$", PAGE))
STUDY, BENCHMARK = (yaml.safe_load(text) for language, text in BLOCKS if language == "yaml")


def test_every_block_is_used():
    assert [language for language, _ in BLOCKS] == ["python", "yaml", "yaml", "python", "python"]
    assert set(FILES) == {"lengths.py", "scalpel/methods/sft_end.py", "scalpel/methods/sft_end_trainer.py"}
    for text in FILES.values():
        ast.parse(text)


def test_the_figure_and_the_study(tmp_path):
    (tmp_path / "lengths.py").write_text(FILES["lengths.py"])
    workflow = synthetic.workflow_with(tmp_path, STUDY, "mine")
    plan = synthetic.plan_of(tmp_path, {"studies": ["mine"]}, workflow)
    synthetic.finish_all(plan, tmp_path)
    files = {path.suffix: path for path in make((plan, tmp_path), "lengths", "mine")}
    frame = pd.read_csv(files[".csv"], skiprows=1)
    assert set(frame["run"]) == {"base", "grpo", "grpo_longer", "sft_1ep"}
    assert (frame["characters"] > 0).all() and files[".png"].stat().st_size > 5000
    theirs = synthetic.plan_of(tmp_path / "theirs")
    shared = {e.step.digest for e in theirs.entries[synthetic.STUDY]} & {e.step.digest for e in plan.entries["mine"]}
    assert len(shared) == len({e.step.digest for e in theirs.entries[synthetic.STUDY]})


def test_the_benchmark(tmp_path, monkeypatch):
    """Read as the page writes it, and asked of every run, nothing else planned."""
    row = re.search(r"`(What is the capital[^`]*)`", PAGE)[1]
    (tmp_path / "capitals.csv").write_text(f"question,choices,answer\n{row}\n")
    monkeypatch.chdir(tmp_path)
    (question,) = csv.DictReader((tmp_path / "capitals.csv").open())
    assert question["answer"] == "B" and '"Paris"' in question["choices"]
    out = tmp_path / "out"
    out.mkdir()
    prepare({"format": "choice", "columns": {}}, {"questions": tmp_path / "capitals.csv"}, out)
    (made,) = pd.read_parquet(next(out.glob("*.parquet"))).to_dict("records")
    assert list(made["choices"]) == ["Lyon", "Paris"]

    plans = [synthetic.plan_of(tmp_path, raw) for raw in (None, BENCHMARK)]
    before, after = ({step.digest: step.stage for step in plan.steps.values()} for plan in plans)
    assert not set(before) - set(after)
    assert {after[digest] for digest in set(after) - set(before)} == {"questions", "evaluate"}


@pytest.mark.slow
def test_the_method(tiny_base, tiny_data, tmp_path):
    """In a copy of the package: it is planned, and learns from fewer tokens than SFT does."""
    shutil.copytree(ROOT / "scalpel", tmp_path / "scalpel", ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        if name.startswith("scalpel/"):
            (tmp_path / name).write_text(FILES[name])
    registry = tmp_path / "scalpel" / "methods" / "__init__.py"
    text = registry.read_text()
    text = text.replace("\nALL = (", "\nfrom scalpel.methods.sft_end import SFTEnd\n\nALL = (", 1)
    registry.write_text(re.sub(r"(ALL = \([^)]*)\)", r"\1, SFTEnd)", text, count=1))
    (tmp_path / "train.py").write_text(TRAIN)
    words = [sys.executable, tmp_path / "train.py", tiny_base, *tiny_data, tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    log = pd.read_parquet(tmp_path / "out" / "log.parquet")
    assert len(log) == 3 and log["loss"].notna().all()
    whole, end = map(int, done.stdout.split()[-2:])
    assert 0.4 * whole < end < 0.6 * whole


TRAIN = """
import sys
from importlib import import_module
from pathlib import Path
from scalpel.chat import load_tokenizer
from scalpel.config.load import load
from scalpel.config.training import TrainSettings
from scalpel.methods import METHODS, sft_trainer
from scalpel.methods.loop import TrainingRun
from scalpel.methods.schedule import read_questions

base, kept, order, out = map(Path, sys.argv[1:])
recipe = METHODS["sft_end"].Recipe(learning_rate=1e-3, steps=3, sequences_per_step=4, checkpoints=1)
assert recipe.identity()["share"] == 0.5
out.mkdir()
run = TrainingRun(recipe, base, base, kept, order, 1, recipe.trainable, out, TrainSettings(threads=1))
trainer = import_module(METHODS["sft_end"].trainer)
trainer.train(run)
tokenizer, rows = load_tokenizer(base), read_questions(kept, order).rows
counts = []
for examples in (sft_trainer.tokenized, trainer.tokenized):
    made = examples(tokenizer, rows, list(rows), recipe.model_copy(update={"loss_on": "completion"}))
    counts.append(sum(len(ids) - start for ids, start in zip(made["input_ids"], made["trained_from"])))
print(*counts)
"""
