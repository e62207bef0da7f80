"""Source files are what the plan saw, from before they are read until they have been."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scalpel.artifact.checking import unchanged
from scalpel.artifact.identity import sha256_file
from scalpel.artifact.step import Step, record_recipe
from scalpel.config.data import FilterRecipe
from scalpel.errors import UserError
from scalpel.remembered import file_digest
from tests.finished import finish
from tests.test_workflow import ROOT


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("first")
    return path


def replace_and_back(path: Path) -> None:
    """Another file in its place for a while; then the very file again, its times as they were."""
    path.rename(path.with_suffix(".kept"))
    path.write_text("other")
    path.unlink()
    path.with_suffix(".kept").rename(path)


def edit_and_back(path: Path) -> None:
    before = path.stat()
    path.write_text("other")
    path.write_text("first")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [replace_and_back, edit_and_back, lambda p: p.write_text("other"), Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_refused(source, change):
    with pytest.raises(UserError, match=r"rows\.jsonl"), unchanged({source: sha256_file(source)}):
        change(source)


def test_a_file_that_is_another_one_is_refused_before_it_is_read(source):
    with pytest.raises(UserError, match="changed since the run was planned"), unchanged({source: "0" * 64}):
        pytest.fail("it was read")


def test_a_file_that_is_read_or_linked_passes(source, tmp_path):
    with unchanged({source: sha256_file(source)}):
        assert source.read_text() == "first"
        os.link(source, tmp_path / "linked")


def test_the_memory_of_hashes_is_not_deceived_by_a_file_s_times(source, tmp_path, monkeypatch):
    """Same path, size and time of change: the copy's inode differs, and so does the time its inode changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = source.stat()
    first = file_digest(source)
    source.write_text("other")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size and source.stat().st_mtime_ns == before.st_mtime_ns
    assert file_digest(source) == sha256_file(source) != first


@pytest.mark.slow
def test_rows_swapped_after_the_plan_are_refused(tiny_base, tmp_path):
    """The plan hashed one file; the stage reads another under the same path."""
    rows = [{"problem": f"{i} + 1?", "answer": str(i + 1), "generations": [f"It is {i + 1}."], "source": "s",
             "correctness_math_verify": [True], "is_reasoning_complete": [True]} for i in range(3)]  # fmt: skip
    path = tmp_path / "rows.parquet"
    write(path, rows)
    base = Step("base", "b", 1, {"of": "test"})
    finish(base, tmp_path, {"model": tiny_base})
    form = {"kind": "parquet", "columns": {}, "constants": {}, "boxed_answer_of": None}
    recipe = {"source": form | {"sha256": sha256_file(path)}, "filter": FilterRecipe(source="s").identity()}
    step = Step("data", "d", 1, recipe, {"base": base}, {"path": str(path)})
    record_recipe(step, tmp_path)
    write(path, [row | {"answer": "7"} for row in rows])
    command = [sys.executable, "-m", "scripts.data", step.directory]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "rows.parquet changed since the run was planned" in done.stderr, done.stderr
    assert [entry.name for entry in (tmp_path / step.directory).iterdir()] == ["recipe.json"]


def write(path: Path, rows: list[dict]) -> None:
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows), path)


def test_questions_swapped_while_they_are_laid_out_are_refused(tmp_path, monkeypatch):
    from scalpel.evaluation import questions

    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    kept, inner = tmp_path / "kept", questions.read_rows
    shutil.copy2(path, kept)

    def swapping(file):
        path.write_text(json.dumps({"question": "1 + 2?", "answer": "3"}) + "\n")
        rows = inner(file)
        shutil.copy2(kept, path)  # content and times as they were
        return rows

    monkeypatch.setattr(questions, "read_rows", swapping)
    (tmp_path / "out").mkdir()
    recipe = {"format": "exact_match", "sha256": {"questions": sha256_file(path)}}
    with pytest.raises(UserError, match=r"q\.jsonl changed since the run was planned"):
        questions.prepare(recipe, {"questions": path}, tmp_path / "out")
