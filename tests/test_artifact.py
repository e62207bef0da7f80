"""Identity, atomicity and verification of results."""

import errno
import json
import math
import os
import shutil
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalpel.artifact import provenance
from scalpel.artifact.disk import disk_errors
from scalpel.artifact.files import temporary
from scalpel.artifact.identity import canonical, digest_of, sha256_file
from scalpel.artifact.job import open_job
from scalpel.artifact.lease import clear_remains
from scalpel.artifact.manifest import contents, problems, restore
from scalpel.artifact.stage import making
from scalpel.artifact.step import Step, record_recipe
from scalpel.errors import UserError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def shuffled(value):
    """The same value with the keys of every mapping in reverse order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), JSON))
def test_digest_ignores_key_order(recipe):
    assert digest_of("train", 1, recipe, {}) == digest_of("train", 1, shuffled(recipe), {})


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: "a"}, {"a": {1, 2}}, {"f": print}, b"x", object()])
def test_canonical_refuses_what_it_cannot_represent(value):
    with pytest.raises(TypeError):
        canonical({"x": value} if not isinstance(value, dict) else value)


def test_golden_digest():
    """This number holds the scheme still: when it changes, every result ever made loses its name."""
    recipe = {"learning_rate": 1e-06, "steps": 571, "text": "é", "flags": [True, None], "nested": {"b": 1, "a": 2.5}}
    assert digest_of("train", 1, recipe, {"base": "85c857b1c3f0"}) == GOLDEN


GOLDEN = "d9471fba4e17"


def small(root, **recipe) -> Step:
    step = Step("order", "order", 1, recipe or {"seed": 1})
    record_recipe(step, root)
    return step


def test_an_input_that_is_made_again_under_another_name_is_found(tmp_path):
    """A run gets seeds and so another name, and the result it had was deleted by hand."""

    def make(name: str) -> tuple[Step, Step]:
        first = Step("order", name, 1, {"seed": 1})
        then = Step("order", "then", 1, {"seed": 2}, {"order": first})
        for step in (first, then):
            record_recipe(step, tmp_path)
        if not first.finished(tmp_path):
            with making(tmp_path / first.directory):
                (tmp_path / first.directory / "a.txt").write_text("hello")
        return first, then

    first, then = make("old")
    directory = tmp_path / then.directory
    with making(directory):
        (directory / "b.txt").write_text("made")
    shutil.rmtree(tmp_path / first.directory)
    (directory / "manifest.json").unlink()  # as Snakemake does before it starts the job again
    again, then = make("new")
    job = open_job(directory)
    assert job.inputs == {"order": tmp_path / again.directory} and restore(directory, job.digest, job.inputs)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["inputs"]["order"]["directory"] == again.directory and problems(directory) == []
    shutil.rmtree(tmp_path / again.directory)
    make("third")
    assert open_job(directory).inputs["order"].name.startswith("third-"), "its manifest was there"


def test_result_is_made_once_and_verified(tmp_path):
    directory = tmp_path / small(tmp_path).directory
    with making(directory) as job:
        (directory / "sub").mkdir()
        (directory / "sub" / "a.txt").write_text("hello")
        assert job.recipe == {"seed": 1}
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["files"] == {"sub/a.txt": {"bytes": 5, "sha256": sha256_file(directory / "sub/a.txt")}}
    assert problems(directory) == []
    (directory / "sub" / "a.txt").write_text("hell")
    assert "truncated" in problems(directory)[0]
    (directory / "sub" / "a.txt").write_text("hellO")
    assert "altered" in problems(directory)[0]
    (directory / "b.txt").write_text("x")
    assert any("not listed" in line for line in problems(directory))
    (directory / "sub" / "a.txt").unlink()
    assert any("missing" in line for line in problems(directory))


def test_files_are_on_the_disk_before_the_manifest_that_lists_them(tmp_path, monkeypatch):
    directory, synced, fsync = tmp_path / small(tmp_path).directory, set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), fsync(handle)))
    replace = os.replace

    def checked(source, target):
        if target.name == "manifest.json":
            listed = (directory / "sub", directory / "sub" / "a", directory / "b", directory)
            assert [path for path in listed if path.stat().st_ino not in synced] == []
            synced.add("asked")
        replace(source, target)

    monkeypatch.setattr(os, "replace", checked)
    with making(directory):
        (directory / "sub").mkdir()
        (directory / "sub" / "a").write_text("a")
        (directory / "b").write_text("b")
    assert "asked" in synced


def test_a_failed_audit_s_probes_stay_to_be_read_until_its_next_start(tmp_path):
    step = Step("audit", "x", 1, {}, {})
    record_recipe(step, tmp_path)
    directory = tmp_path / step.directory
    with pytest.raises(UserError), making(directory):
        (directory / "audit.json").write_text("[]")
        raise UserError("the installed stack fails")
    assert (directory / "audit.json").is_file() and not (directory / "manifest.json").exists()
    with making(directory):
        assert not (directory / "audit.json").exists()


def test_failed_stage_leaves_no_manifest(tmp_path):
    directory = tmp_path / small(tmp_path).directory
    with pytest.raises(ValueError), making(directory):
        (directory / "half.txt").write_text("half")
        raise ValueError
    assert sorted(path.name for path in directory.iterdir()) == ["recipe.json"]


def test_provenance_says_the_time_on_the_clock_and_on_the_cpu(tmp_path):
    """That of children that ended in it, too."""
    directory = tmp_path / small(tmp_path).directory
    with making(directory):
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    made = json.loads((directory / "provenance.json").read_text())
    assert made["cpu_seconds"] + 0.02 >= 0.3 and made["seconds"] >= 0.28 and made["started"] > 1e9


def test_full_disk_is_one_sentence(tmp_path):
    directory = tmp_path / small(tmp_path).directory
    with pytest.raises(UserError, match="No space left"), disk_errors(directory), making(directory):
        raise OSError(errno.ENOSPC, "No space left on device", "x.safetensors")
    assert not (directory / "manifest.json").exists()


def test_recipe_of_another_digest_is_refused(tmp_path):
    directory = tmp_path / small(tmp_path).directory
    other = directory.with_name("order-0123456789ab")
    directory.rename(other)
    with pytest.raises(UserError, match="moved or edited"):
        open_job(other)
    frozen = json.loads((other / "recipe.json").read_text())
    frozen["recipe"]["seed"] = 2
    other.rename(directory)
    (directory / "recipe.json").write_text(json.dumps(frozen))
    with pytest.raises(UserError, match="moved or edited"):
        open_job(directory)
    (directory / "recipe.json").write_text(json.dumps(frozen)[:40])
    with pytest.raises(UserError, match="not valid JSON"):
        open_job(directory)


def test_unfinished_input_is_named(tmp_path):
    first = small(tmp_path)
    second = Step("train", "grpo", 1, {}, {"order": first})
    record_recipe(second, tmp_path)
    with pytest.raises(UserError, match="needs order"):
        open_job(tmp_path / second.directory)
    gated = Step("train", "sft", 1, {}, gates={"audit": first})
    record_recipe(gated, tmp_path)
    with pytest.raises(UserError, match="needs audit"):
        open_job(tmp_path / gated.directory)


def test_temporary_files_are_no_part_of_a_result(tmp_path):
    """Neither those of dead processes nor of live ones, at the top or deeper; and none is left."""
    directory = tmp_path / small(tmp_path).directory
    for name in ("provenance.json", "manifest.json"):
        temporary(directory / name).write_text("half")
    with making(directory):
        (directory / "sub").mkdir()
        (directory / "sub" / "a").write_text("a")
        temporary(directory / "finished.json").write_text("half")
        temporary(directory / "sub" / "b.parquet").write_text("half")
        temporary(directory / "recipe.json").write_text("half")  # of another start of Snakemake, which still writes
    assert list(json.loads((directory / "manifest.json").read_text())["files"]) == ["sub/a"]
    assert problems(directory) == []
    assert [path.name.split(".")[1] for path in directory.rglob(".*")] == ["recipe"]


def test_what_dead_processes_left_is_removed_at_the_next_start(tmp_path):
    directory = tmp_path / small(tmp_path).directory
    child = subprocess.Popen(["sleep", "60"])
    of_child = directory / f".recipe.json.0a1b2c3d.{child.pid}@{socket.gethostname()}.tmp"
    of_child.write_text("half")
    (directory / "lease.json").write_text("{}")
    clear_remains(directory)
    assert of_child.exists(), "its process lives"
    child.kill()
    child.wait()
    clear_remains(directory)
    assert not of_child.exists()


def test_what_vllm_is_told_is_recorded_where_it_is_installed(monkeypatch):
    installed = {"torch": "2"}
    monkeypatch.setattr(provenance, "versions", lambda names: {n: v for n, v in installed.items() if n in names})
    assert "vllm" not in provenance.circumstances()
    installed["vllm"] = "1"
    assert provenance.circumstances()["vllm"]["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_state_is_no_part_of_a_result(tmp_path):
    step = Step("train", "grpo", 1, {})
    record_recipe(step, tmp_path)
    directory = tmp_path / step.directory
    with making(directory):
        (directory / "state").mkdir()
        (directory / "state" / "optimizer").write_text("x")
        (directory / "kept").write_text("y")
        assert list(contents(directory)) == ["kept"]
    assert not (directory / "state").exists() and problems(directory) == []
