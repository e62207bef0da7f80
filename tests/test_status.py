"""`make status` and `make clean-unused` on made-up results: every state a result may be in, and what may be removed."""

import json
import os
import shutil
import socket
import time

import pytest
import yaml

from scalpel import unused
from scalpel.artifact.files import LEASE, MANIFEST
from scalpel.artifact.lease import process_start
from scalpel.artifact.provenance import circumstances
from scalpel.artifact.step import record_recipe
from scalpel.standing import STATES
from tests import synthetic
from tests.test_repair import CONFIG, Lab

OTHER = CONFIG | {"runs": {"grpo": {"learning_rate": 3.0e-4}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Lab:
    """The results of OTHER's runs, and a config.yaml that plans another grpo."""
    lab = Lab(tmp_path_factory.mktemp("made"))
    lab.write(OTHER)
    synthetic.finish_all(lab.plan(), lab.root)
    lab.write()
    return lab


@pytest.fixture
def lab(made, tmp_path) -> Lab:
    shutil.copytree(made.root, tmp_path, dirs_exist_ok=True)
    return Lab(tmp_path)


def states(lab: Lab, *words: str) -> dict[str, tuple[str, str]]:
    """Place -> (state, note) of every line of the table."""
    code, text = lab.run("status", *words)
    assert code == 0, text
    rows = [line.partition("   [") for line in text.splitlines() if line.split()[0] in STATES]
    return {row.split()[1]: (row.split()[0], note.rstrip("]")) for row, _, note in rows}


def held(directory, alive: bool = True) -> None:
    """A lease of this process, or of one that is dead."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "host": socket.gethostname(), "pid": os.getpid(), "holds": True, "since": time.time(), "job": None,
        "started": process_start(os.getpid()) if alive else "1",
    }  # fmt: skip
    (directory / f"{LEASE}.{'a' * 32}.json").write_text(json.dumps(content))


def test_every_result_has_a_state_and_the_reason_for_it(lab):
    plan = lab.plan()
    grpo = plan.run("mine", "grpo", 42).checkpoints
    found = states(lab)
    assert found[grpo.directory][0] == "ready"
    assert "since grpo-" in found[grpo.directory][1] and "learning_rate: 0.0003 -> " in found[grpo.directory][1]
    (kl,) = [step for step in plan.steps.values() if step.stage == "kl" and step.name.startswith("grpo")]
    assert found[kl.directory] == ("waiting", f"for train/grpo; {found[kl.directory][1].partition('; ')[2]}")
    assert found["results/figures/mine/kl.pdf"] == ("waiting", "for kl/grpo.math_500")
    assert "and " in found["results/report/mine/index.html"][1]
    sft = plan.run("mine", "sft_1ep", 42).checkpoints
    assert found[sft.directory][0] == "finished" and "made by other code: code None" in found[sft.directory][1]
    (old,) = [place for place in found if place.startswith("results/train/grpo-") and place != grpo.directory]
    assert found[old][0] == "unused" and found[old][1].endswith("kB")
    assert len([1 for state, _ in found.values() if state == "finished"]) == len(plan.steps) - 4

    held(lab.root / grpo.directory)
    log = lab.root / f"results/logs/train/grpo-{grpo.digest}.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 1/9\nstep 5/9, ETA 0:20\n")
    state, note = states(lab)[grpo.directory]
    assert state == "running" and note.startswith("since 2") and f"process {os.getpid()} on" in note
    assert note.endswith("step 5/9, ETA 0:20")
    shutil.rmtree(lab.root / grpo.directory)
    log.with_name(f"{log.name}.final").touch()
    assert f"its last try ended with an error: results/logs/train/{log.name}" in states(lab)[grpo.directory][1]


def test_a_result_of_this_code_is_not_called_another_s(lab):
    sft = lab.plan().run("mine", "sft_1ep", 42).checkpoints
    (lab.root / sft.directory / "provenance.json").write_text(json.dumps(circumstances()))
    assert states(lab)[sft.directory] == ("finished", "")


def test_status_of_another_scale_counts_what_both_plan(lab):
    assert any("results/fetch/" in place for place in states(lab, "--scale", "cluster"))
    code, text = lab.run("status", "--scale", "clustre")
    assert code == 2 and "did you mean 'cluster'" in text


def test_unused_results_are_listed_and_removed_only_on_yes(lab):
    plan = lab.plan()
    before = {path for path in lab.root.rglob("*")}
    code, text = lab.run("clean_unused")
    assert code == 0 and "results of no current configuration" in text and "YES=1" in text
    listed = {line.split()[-1] for line in text.splitlines() if "results/" in line and "kB" in line}
    assert {place.split("/")[1] for place in listed} == {"train", "kl", "evaluate", "weight_change"}
    assert {path for path in lab.root.rglob("*")} == before
    assert lab.run("clean_unused", "--yes")[0] == 0
    there = {path.relative_to(lab.root).as_posix() for path in lab.results.glob("*/*-*")}
    assert there == {step.directory for step in plan.steps.values() if step.finished(lab.root)}
    assert not list(lab.results.glob(f"{unused.REMOVING}*")) and not list(lab.results.rglob("*.tmp"))
    assert "0 results" in lab.run("clean_unused", "--yes")[1]


def test_what_is_being_made_or_queued_and_what_that_is_made_of_is_left(lab, monkeypatch):
    lab.write(CONFIG | {"runs": {"grpo": {"learning_rate": 3.0e-4}, "sft_1ep": {"learning_rate": 1.0e-4}}})
    steps = [step for step in lab.plan().steps.values() if step.name.startswith("sft_1ep")]
    for step in steps:
        record_recipe(step, lab.root)
    lab.write()
    (train,) = [step for step in steps if step.stage == "train"]
    (kl,) = [step for step in steps if step.stage == "kl"]
    names = lambda: {item.place for item in unused.find(lab.root, [lab.plan()])}  # noqa: E731
    assert {train.directory, kl.directory} <= names()
    held(lab.root / kl.directory)
    assert not {train.directory, kl.directory} & names(), "its checkpoints are read"
    held(lab.root / kl.directory, alive=False)
    assert kl.directory in names()
    monkeypatch.setattr(unused.slurm, "ask", lambda *words: f"rule_kl_wildcards_x_{kl.digest}\n(null)")
    assert not {train.directory, kl.directory} & names()


def test_an_interrupted_removal_leaves_whole_results_alone(lab, monkeypatch):
    found = unused.find(lab.root, [lab.plan()])
    assert len(found) > 2
    files = {item.place: sorted(p.name for p in (lab.root / item.place).rglob("*")) for item in found}
    remove, calls = unused.remove, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 3:
            (path / MANIFEST).unlink()  # half of it is gone
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(unused, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unused.remove_unused(found, lab.root)
    left = {item.place for item in found if (lab.root / item.place).exists()}
    assert 0 < len(left) < len(found)
    assert all(sorted(p.name for p in (lab.root / place).rglob("*")) == files[place] for place in left)
    monkeypatch.undo()
    assert lab.run("clean_unused", "--yes")[0] == 0
    assert not list(lab.results.glob(f"{unused.REMOVING}*")) and not unused.find(lab.root, [lab.plan()])


def test_a_result_that_is_taken_meanwhile_is_left(lab):
    found = unused.find(lab.root, [lab.plan()])
    held(lab.root / found[0].place)
    assert unused.remove_unused(found[:2], lab.root) == [found[0].place]
    assert (lab.root / found[0].place / MANIFEST).is_file() and not (lab.root / found[1].place).exists()


def test_what_another_scale_of_this_config_plans_is_used(tmp_path):
    lab = Lab(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"scale": "cluster"}))
    plan = lab.plan()
    step = next(step for step in plan.steps.values() if step.stage == "train")
    record_recipe(step, tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"scale": "laptop"}))
    assert "0 results" in lab.run("clean_unused")[1]
    assert not [line for line in lab.run("status")[1].splitlines() if line.startswith("unused")]


def test_outside_of_a_checkout_there_is_a_sentence(tmp_path):
    code, text = Lab(tmp_path).run("clean_unused")
    assert code == 2 and text.startswith("error: there is no results/ here")
