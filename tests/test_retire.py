"""Intermediate weights go once all that is planned has read them, and what they leave behind says so everywhere.

Made-up results of two runs; programs, Snakemake and kill -9 are real.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from scalpel.analysis.tensors import open_tensors
from scalpel.artifact.files import MANIFEST, RETIRED, read_json
from scalpel.artifact.lease import lease
from scalpel.artifact.manifest import content_hashes, problems, restore
from scalpel.artifact.stage import making
from scalpel.checkpoints import checkpoints
from scalpel.errors import UserError
from scalpel.weights import weight_files
from tests.synthetic import CHECKPOINTS
from tests.test_repair import CONFIG, ROOT, STUDY, Lab, lab, planned, snakemake, whole  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
NEW_MEASURE = CONFIG | {"overrides": CONFIG["overrides"] | {"kl": {"aime24": {}}}}


def weights(run) -> list:
    return sorted(run.rglob("*.safetensors"))


def made(lab_: Lab, run: str):
    """The directory of a run of the lab."""
    return lab_.only(f"train/{run}-*")


def refusal(where: Lab, *words: str) -> str:
    """What Snakemake says of a plan that it refuses."""
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1", "-s", str(ROOT / "Snakefile"), *words]
    done = subprocess.run(command, cwd=where.root, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode, done.stdout
    return done.stdout + done.stderr


def test_what_was_read_is_listed_and_goes_on_yes_alone(lab):  # noqa: F811
    before = {path: path.read_text() for path in lab.results.rglob("*.safetensors")}
    status, said = lab.run("retire")
    assert status == 0 and said.count("may go") == 2 and "2 runs" in said and "YES=1" in said
    assert {path: path.read_text() for path in lab.results.rglob("*.safetensors")} == before
    gone = sum(path.stat().st_size for run in ("grpo", "sft_1ep") for path in weights(made(lab, run))[:-1])
    manifests = {path: path.read_bytes() for path in lab.results.rglob(MANIFEST)}
    status, said = lab.run("retire", "--yes")
    assert status == 0 and f"{gone / 1e3:.0f} kB removed" in said
    for run in (made(lab, "grpo"), made(lab, "sft_1ep")):
        last = checkpoints(run)[-1].path / "model.safetensors"
        assert weights(run) == [last] and last.read_text() == before[last]
        record = read_json(run / RETIRED)["files"]
        assert len(record) == CHECKPOINTS - 1
        assert all(read_json(run / MANIFEST)["files"][name] == item for name, item in record.items())
    assert {path: path.read_bytes() for path in lab.results.rglob(MANIFEST)} == manifests
    status, said = lab.run("verify")
    assert status == 0 and " 0 damaged, 0 derived from damage; intermediate weights of 2 runs are retired" in said, said
    assert f"{CHECKPOINTS - 1} checkpoints retired" in lab.run("status")[1]
    assert lab.jobs() == {}
    assert "no intermediate weights may go" in lab.run("retire", "--yes")[1]


def test_what_is_still_to_be_read_stays(lab):  # noqa: F811
    """By an unfinished step, a damaged one, an exhibit that is not current, and a job of another study."""
    kl = lab.only("kl/grpo.*") / "kl.parquet"
    content = kl.read_bytes()
    kl.write_bytes(content[:-1])
    assert "is damaged: `make repair`" in lab.run("retire")[1]
    kl.write_bytes(content)
    lab.write(NEW_MEASURE)
    said = lab.run("retire", "--yes")[1]
    assert said.count("aime24") == 2 and said.count("is not finished") == 2
    lab.write(study=STUDY | {"exhibits": STUDY["exhibits"] | {"kl": {"dpi": 60}}})
    assert lab.run("retire", "--yes")[1].count("is not made of what lies there") == 2
    lab.write()
    shutil.copytree(lab.only("kl/grpo.*"), other := lab.results / "kl" / "other-000000000000")
    (other / MANIFEST).unlink()
    with lease(other):
        said = lab.run("retire", "--yes")[1]
    assert said.count("is being made") == 1 and len(weights(made(lab, "grpo"))) == CHECKPOINTS
    assert len(weights(made(lab, "sft_1ep"))) == 1


def test_what_cannot_come_back_is_said_before_it_is_asked_for(lab):  # noqa: F811
    lab.run("retire", "--yes")
    run = made(lab, "grpo")
    lab.write(NEW_MEASURE)
    said = refusal(lab)
    assert f"would read checkpoints of results/train/{run.name} whose weights were retired; only training" in said
    assert f"move results/train/{run.name} aside" in said and "Traceback" not in said
    status, said = lab.run("preflight", "--no-slurm")
    assert status == 1 and "whose weights were retired" in " ".join(said.split())
    snakemake("-n", "results/tables/mine/norms.csv", cwd=lab.root)  # what does not read them is made as ever
    lab.write(study=STUDY | {"runs": STUDY["runs"] | {"then": {"method": "grpo", "start_from": "sft_1ep"}}})
    assert lab.jobs()["train"] == 1  # it starts from the last one
    lab.write(NEW_MEASURE)
    for run in lab.results.glob("train/*"):
        run.rename(lab.root / run.name)
    assert lab.jobs()["train"] == 2


def test_who_reads_them_all_the_same_is_told(lab):  # noqa: F811
    lab.run("retire", "--yes")
    first, *_, last = (checkpoint.path for checkpoint in checkpoints(made(lab, "grpo")))
    words = r"model.safetensors was retired; only training brings it back: move .*train/grpo-\w+ aside"
    with pytest.raises(UserError, match=words):
        weight_files(first)
    with pytest.raises(UserError, match=words), ExitStack() as stack:
        open_tensors(first, stack)
    assert weight_files(last)


def test_repair_says_what_would_not_come_back(lab):  # noqa: F811
    lab.run("retire", "--yes")
    (lab.only("kl/grpo.*") / "kl.parquet").write_text("damaged")
    said = lab.run("repair")[1]
    assert f"reads retired weights of results/train/{made(lab, 'grpo').name}" in said
    assert said.count("retired") == 1


@pytest.mark.parametrize("removed", [0, 1, 5])
def test_a_removal_that_is_killed_leaves_runs_that_are_whole(lab, removed):  # noqa: F811
    code = f"""
import os, pathlib, runpy, sys
sys.argv = ["retire", "--yes"]
unlink, seen = pathlib.Path.unlink, []
def dying(path, **options):
    if path.suffix == ".safetensors":
        if len(seen) == {removed}:
            os.kill(os.getpid(), 9)
        seen.append(path)
    unlink(path, **options)
pathlib.Path.unlink = dying
runpy.run_module("scripts.retire", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=lab.root, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    (run,) = (path.parent for path in lab.results.glob(f"train/*/{RETIRED}"))
    assert len(weights(run)) == CHECKPOINTS - removed
    assert lab.run("verify")[0] == 0 and lab.jobs() == {}
    lab.run("retire", "--yes")
    assert [len(weights(run)) for run in lab.results.glob("train/*")] == [1, 1] and lab.run("verify")[0] == 0


def test_damage_beside_what_was_retired_is_damage(lab):  # noqa: F811
    lab.run("retire", "--yes")
    run = made(lab, "grpo")
    weights(run)[0].write_text("another one, of many more words")
    assert any("altered" in line for line in problems(run))
    shutil.copy(made(lab, "sft_1ep") / RETIRED, run / RETIRED)
    assert any(f"{RETIRED}: " in line and "is not what the manifest says" in line for line in problems(run))
    (run / RETIRED).write_text("{")
    assert any("is damaged: it does not say which files were retired" in line for line in problems(run))


def test_a_run_whose_manifest_was_deleted_is_whole_and_one_made_again_starts_from_nothing(lab):  # noqa: F811
    lab.run("retire", "--yes")
    run = made(lab, "grpo")
    recorded = json.loads((run / MANIFEST).read_text())
    inputs = {role: lab.root / item["directory"] for role, item in recorded["inputs"].items()}
    (run / MANIFEST).unlink()
    assert restore(run, recorded["digest"], inputs) and content_hashes({"x": run})
    with making(run):
        assert not (run / RETIRED).exists() and not weights(run)
        (run / "new").write_text("made again")
    assert problems(run) == []
