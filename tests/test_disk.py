"""Disks that refuse: full, read-only, or with a limit on file sizes. One sentence, and nothing half-written."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scalpel.artifact import disk
from scalpel.artifact.step import Step, record_recipe
from scalpel.chat import template_text
from tests.finished import finish
from tests.test_workflow import ROOT
from tests.tiny import MODEL


def outcome(command: list, cwd: Path, **more) -> tuple[int, str, list[str]]:
    """(exit status, all that was said, its lines that begin with ``error: ``) of a program."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, **more)
    said = done.stdout + done.stderr
    return done.returncode, said, [line for line in said.splitlines() if line.startswith("error: ")]


def base_step(root: Path, world: Path) -> Step:
    """The toy's base model, of one step of training, on a finished world."""
    toy = Step("toy", "world", 1, {"of": "test"})
    finish(toy, root, {name: world / name for name in ("pretraining.parquet", "rows.parquet")})
    recipe = {"kind": "toy", "chat_template": template_text("scalpel_vs_hammer")}
    recipe |= MODEL.model_copy(update={"steps": 1}).identity()
    step = Step("base", "tiny", 1, recipe, {"toy": toy}, {"threads": 1})
    record_recipe(step, root)
    return step


def make_base(step: Step, root: Path, **more) -> tuple[int, str, list[str]]:
    return outcome([sys.executable, "-m", "scripts.base", step.directory], root, **more)


def assert_nothing_is_left(directory: Path) -> None:
    """No model, whole or half: beside the recipe at most what the training resumes from."""
    assert {path.name for path in directory.iterdir()} <= {"recipe.json", "state"}


@pytest.fixture
def small_disk(tmp_path):
    """mount(size) -> a directory on a disk of its own of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(size: int) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("this user may not mount a disk")
        mounted.append(place)
        return place

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.slow
def test_a_limit_on_file_sizes_is_one_sentence_of_the_base_stage(tiny_world, tmp_path):
    """safetensors reports it by an error of its own."""
    step = base_step(tmp_path, tiny_world / "world")
    code, said, errors = make_base(
        step, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    )
    assert code == 2 and len(errors) == 1 and "Traceback" not in said, said
    assert "a file would be larger than this process may write (ulimit -f)" in errors[0]
    assert_nothing_is_left(tmp_path / step.directory)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_of_the_base_stage(tiny_world, tmp_path, small_disk):
    root = small_disk(4 << 20)
    step = base_step(root, tiny_world / "world")
    free = shutil.disk_usage(root).free
    (root / "filler").write_bytes(b"x" * (free - (48 << 10)))
    code, said, errors = make_base(step, root)
    assert code == 2 and len(errors) == 1 and "Traceback" not in said, said
    assert "No space left on the disk of" in errors[0] and "free some and start again" in errors[0]
    assert_nothing_is_left(root / step.directory)
    (root / "filler").unlink()
    assert make_base(step, root)[0] == 0


def test_read_only_results_are_one_sentence_of_a_stage_and_of_the_start(tiny_world, tmp_path, small_disk):
    root = small_disk(8 << 20)
    step = base_step(root, tiny_world / "world")
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    code, said, errors = make_base(step, root)
    assert code == 2 and len(errors) == 1 and "its file system is read-only" in errors[0], said
    (tmp_path / "lab").mkdir()
    shutil.copy(ROOT / "tests" / "smoke.yaml", tmp_path / "lab" / "config.yaml")
    (tmp_path / "lab" / "results").symlink_to(root / "results")
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "1"]
    code, said, _ = outcome(snakemake, tmp_path / "lab")
    assert code != 0 and "Traceback" not in said and "Error in rule" not in said, said
    assert "cannot be written: its file system is read-only; let it be written and start again" in said


def test_results_of_somebody_else_are_one_sentence_at_the_start(tmp_path):
    """What a user without the right to write meets; root has it always and so becomes another user."""
    from scalpel.config.load import load, read_yaml
    from scalpel.errors import UserError
    from scalpel.plan import Plan

    (tmp_path / "results").mkdir(mode=0o555)
    plan = Plan(load(read_yaml(ROOT / "tests" / "smoke.yaml"), ROOT / "workflow"), ROOT / "workflow", tmp_path)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"results.* may not be read or written by you"):
            plan.record()
    finally:
        os.seteuid(was)
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), "No space left to you on the disk of /x/y: your quota"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("File too large (os error 27)"), "ulimit -f"),
        (OSError(errno.EIO, "Input/output error", "/x"), "/x: the disk reports an error after step 3"),
    ],
)
def test_every_library_s_words_for_it_are_understood(error, words, tmp_path):
    assert words in disk.sentence(error, tmp_path, "after step 3" if error.args[0] == errno.EIO else "")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file", "x"), ValueError("os"), RuntimeError("shape")])
def test_other_errors_stay_what_they_are(error, tmp_path):
    assert disk.sentence(error, tmp_path) is None
    with pytest.raises(type(error)), disk.disk_errors(tmp_path):
        raise error
