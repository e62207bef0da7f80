"""Live curves: transformers' own reporting into small packages that write down what they are told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scalpel.config.load import load
from scalpel.errors import UserError
from scalpel.methods import tracking
from scalpel.plan import Plan
from scalpel.plan.feasible import refuse_what_cannot_run
from tests.test_methods import CHILD, SFT, files

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
NAME = "sft_1ep-0123456789ab"
# Each notes its calls in $CALLS; the first start is asked to stop in the midst of the run.
NOTE = """
import json, os, signal
def note(what, **more):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps({"what": what, **more}) + "\\n")
    if what == "log" and more.get("step", 0) >= 4 and os.environ.get("STOP"):
        os.kill(os.getpid(), signal.SIGTERM)
class Config(dict):
    def update(self, values=(), allow_val_change=False): note("config", lr=values["learning_rate"])
"""
STUBS = {
    "tensorboard": ("tensorboardX", """
class SummaryWriter:
    def __init__(self, log_dir): note("init", id=log_dir)
    def add_scalar(self, name, value, step): note("log", step=step, name=name)
    def add_text(self, *_): pass
    def add_hparams(self, *_, **__): pass
    def flush(self): pass
    def close(self): pass
"""),
    "wandb": ("wandb", """
run, config, sdk_ = None, Config(), None
def init(project, name):
    global run
    run = type("Run", (), {"_label": lambda *_, **__: None, "summary": {}, "url": "", "name": name, "id": ""})()
    env = {key: os.environ[key] for key in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_LOG_MODEL", "WANDB_DIR")}
    note("init", id=env["WANDB_RUN_ID"], project=project, name=name, resume=env["WANDB_RESUME"], dir=env["WANDB_DIR"])
def define_metric(*_, **__): pass
def watch(*_, **__): pass
def log(values): note("log", step=values["train/global_step"], name=list(values)[0])
"""),
    "trackio": ("trackio", """
config = Config()
class _Space:
    def get(self): return None
class _Vars:
    def __getattr__(self, name): return _Space()
context_vars = _Vars()
def init(project, name, resume, space_id=None, **_): note("init", id=name, project=project, resume=resume, at=space_id)
def freeze(*_, **__): note("upload")
def sync(*_, **__): note("upload")
def log(values): note("log", step=values["train/global_step"], name=list(values)[0])
def finish(): note("finish")
"""),
}  # fmt: skip
TRAINING = CHILD.replace(
    "train(recipe, Path(model)", "from tests.test_methods import TrainSettings\ntrain(recipe, Path(model)"
).replace("start=Path(start))", "start=Path(start), settings=TrainSettings(sequences_per_device=4, tracking={!r}))")


def write_stub(folder: Path, tracker: str) -> None:
    name, text = STUBS[tracker]
    (folder / name / "sdk" / "lib").mkdir(parents=True)
    (folder / name / "__init__.py").write_text(NOTE + text)
    for path in ("sdk/__init__.py", "sdk/lib/__init__.py"):
        (folder / name / path).write_text("")
    (folder / name / "sdk/lib/config_util.py").write_text("class ConfigError(Exception): pass\n")


def start(tracker: str, model: Path, data, out: Path, stubs: Path | None = None, **more: str) -> str:
    arguments = ["sft", SFT.model_dump_json(), str(model), str(model), *map(str, data), str(out)]
    path = f"{stubs}:{ROOT}" if stubs else str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", TRAINING.format(tracker), *arguments], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CALLS": f"{stubs}/calls"} | more,
    )  # fmt: skip
    return done.stderr


@pytest.fixture(scope="module")
def untracked(tiny_base, tiny_data, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("untracked") / "results" / "train" / NAME
    assert "Traceback" not in start("none", tiny_base, tiny_data, out)
    return files(out)


@pytest.mark.slow
@pytest.mark.parametrize("tracker", STUBS)
def test_a_stopped_run_reports_on_to_the_same_one_and_ends_as_if_untracked(
    tracker, untracked, tiny_base, tiny_data, tmp_path
):
    write_stub(tmp_path, tracker)
    results = tmp_path / "results"
    out = results / "train" / NAME
    assert "Interrupted" in start(tracker, tiny_base, tiny_data, out, tmp_path, STOP="1")
    said = start(tracker, tiny_base, tiny_data, out, tmp_path)
    assert "Traceback" not in said, said
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    first, second = [call for call in calls if call["what"] == "init"]
    assert first == second and first["id"].endswith("0123456789ab")
    assert first.get("resume", "allow") == "allow" and first.get("project", "scalpel") == "scalpel"
    assert first.get("at") is None and not [call for call in calls if call["what"] == "upload"]
    steps = [
        call["step"] for call in calls if call["what"] == "log" and call["name"] in ("train/loss", "train/train_loss")
    ]
    assert steps[:4] == [1, 2, 3, 4] and set(steps) == set(range(1, max(steps) + 1))
    assert files(out) == untracked, "what a run leaves does not depend on who watches"
    assert {path.name for path in results.iterdir()} <= {"train", "logs"}


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_a_sentence_before_the_run(tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    plan = Plan(load({"tracking": tracker}, WORKFLOW), WORKFLOW, tmp_path)
    with pytest.raises(UserError, match=f"tracking: {tracker}: the package {tracker} is not installed; install it by"):
        refuse_what_cannot_run(plan)
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    refuse_what_cannot_run(plan)


def test_tracking_is_off_by_default_and_in_no_digest(tmp_path):
    assert yaml.safe_load((ROOT / "config.yaml").read_text())["tracking"] == "none"
    plans = [Plan(load(raw, WORKFLOW), WORKFLOW, tmp_path) for raw in ({}, {"tracking": "wandb"})]
    assert set(plans[0].steps) == set(plans[1].steps)
    told = [plan.run("scalpel_vs_hammer", "grpo", 42).checkpoints.settings["tracking"] for plan in plans]
    assert told == ["none", "wandb"]
    with pytest.raises(UserError, match=r"config\.yaml: tracking: "):
        load({"tracking": "wandbb"}, WORKFLOW)
