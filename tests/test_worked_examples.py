"""docs/extend.md, and the README's block on data of one's own: the files written where they say, and used."""

import ast
import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalpel.config.load import merged
from scalpel.evaluation.questions import prepare
from tests import hostile_path, synthetic
from tests.test_exhibits import make
from tests.test_newcomer import openr1
from tests.test_workflow import ROOT, snakemake

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


def add_method(folder: Path) -> None:
    """Do to a copy of the package what the page tells to do for a method."""
    for name in FILES:
        if name.startswith("scalpel/"):
            (folder / name).write_text(FILES[name])
    registry = folder / "scalpel" / "methods" / "__init__.py"
    text = registry.read_text()
    text = text.replace("\nALL = (", "\nfrom scalpel.methods.sft_end import SFTEnd\n\nALL = (", 1)
    registry.write_text(re.sub(r"(ALL = \([^)]*)\)", r"\1, SFTEnd)", text, count=1))


@pytest.mark.slow
def test_the_method(tiny_base, tiny_data, tmp_path):
    """In a copy of the package: it learns from fewer tokens than SFT does."""
    shutil.copytree(ROOT / "scalpel", tmp_path / "scalpel", ignore=shutil.ignore_patterns("__pycache__"))
    add_method(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    words = [sys.executable, tmp_path / "train.py", tiny_base, *tiny_data, tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    log = pd.read_parquet(tmp_path / "out" / "log.parquet")
    assert len(log) == 3 and log["loss"].notna().all()
    whole, end = map(int, done.stdout.split()[-2:])
    assert 0.4 * whole < end < 0.6 * whole


RUN = {"method": "sft_end", "epochs": 1, "learning_rate": 1e-3, "sequences_per_step": 16, "checkpoints": 1}
SMALL = {
    "title": "Data, a benchmark, a method and a figure of one's own",
    "runs": {"end": RUN},
    "exhibits": {"lengths": {"kind": "lengths.py", "runs": ["base", "end"]}, "scores": {"kind": "scores_table"}},
}


@pytest.mark.slow
@pytest.mark.workflow
def test_all_of_it_in_one_run(tiny_base, tmp_path):
    """Snakemake, offline, in a checkout that has the method: the README's own data, the page's benchmark and figure.

    The model, one on disk, and what is asked of it are small, and the study has one run.
    """
    for part in hostile_path.PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    add_method(tmp_path)
    (tmp_path / "lengths.py").write_text(FILES["lengths.py"])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    rows = [{"problem": f"Add one to {n}.", "solution": f"It is $\\boxed{{{n + 1}}}$.", "answer": f"{n + 1}"}
            for n in range(40)]  # fmt: skip
    asked = [{"problem": f"Which number comes after {n}?", "solution": f"$\\boxed{{{n + 1}}}$"} for n in range(5)]
    known = [{"question": f"Which is {n}?", "subject": "s", "choices": list("abcd"), "answer": n} for n in range(4)]
    tables = {"rows": openr1(rows), "math_500": asked, "mmlu": known, "mmlu_dev": known}
    for name, table in tables.items():
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{name}.parquet")
    row = re.search(r"`(What is the capital[^`]*)`", PAGE)[1]
    other = row.replace("France", "Italy").replace("Lyon", "Rome").replace(",B", ",A")
    (tmp_path / "capitals.csv").write_text(f"question,choices,answer\n{row}\n{other}\n")
    (own_data,) = [text for text in re.findall(r"(?s)```yaml\n(.*?)```", (ROOT / "README.md").read_text())
                   if "rows.parquet" in text]  # fmt: skip
    shutil.copytree(tiny_base, tmp_path / "DIR")
    tasks = {
        "math_500": {"group": "capitals", "samples": 1, "max_new_tokens": 16}, "mmlu": {"group": "capitals"},
        "gsm8k": None, "mmlu_pro": None, "ifeval": None,
    }  # fmt: skip
    less = {
        "models": {"mine": {"kind": "local", "path": "DIR"}},
        "model": "mine",
        "evaluation": {"tasks": tasks},
        "guard": ["math_500", "mmlu"],
    }
    config = {"scale": "laptop", "studies": ["small.yaml"], "overrides": less}
    for block in (yaml.safe_load(own_data), BENCHMARK):
        config = merged(config, block)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    snakemake("--cores", "2", "results/figures/small/lengths.pdf", "results/tables/small/scores.csv", cwd=tmp_path,
              checkout=tmp_path)  # fmt: skip

    results = tmp_path / "results"
    (data,) = results.glob("data/*")
    assert pq.read_table(data / "kept.parquet").num_rows == len(rows)
    (trained,) = results.glob("train/end-*")
    assert yaml.safe_load((trained / "recipe.json").read_text())["recipe"]["method"] == "sft_end"
    assert len(pq.read_table(trained / "log.parquet")) == 3, "40 rows in steps of 16"
    scores = pd.concat(pd.read_parquet(path) for path in results.glob("evaluate/end*/scores.parquet"))
    asked_of = scores.drop_duplicates("task").set_index("task")["questions"].to_dict()
    assert asked_of == {"math_500": len(asked), "mmlu": len(known), "capitals": 2}
    shown = pd.read_csv(results / "figures" / "small" / "lengths.csv", skiprows=1)
    assert set(shown["run"]) == {"base", "end"} and (shown["characters"] > 0).all()
    assert "capitals" in (results / "tables" / "small" / "scores.csv").read_text()


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
