"""The audit: the installed stack passes, planted bugs are named, and another stack never passes an old audit."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from scalpel.artifact.job import open_job
from scalpel.artifact.stage import check_gates
from scalpel.artifact.step import Step, record_recipe
from scalpel.audit import fingerprint as stamp
from scalpel.audit import probes, referee
from scalpel.audit.probes import audit, examples, probe, take_step, tiny_model
from scalpel.config.training import TrainSettings
from scalpel.errors import UserError
from scalpel.methods import likelihood
from scalpel.methods.grpo import GRPORecipe
from scalpel.methods.sft import SFTRecipe

ROOT = Path(__file__).resolve().parent.parent
SINGLE = TrainSettings()


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_installed_stack_passes(accumulation, tmp_path):
    audit(SINGLE, {"accumulation": accumulation}, tmp_path)
    found = json.loads((tmp_path / "audit.json").read_text())
    assert [p["name"] for p in found] == ["accumulation", "aggregation", "masking", "precision"]
    assert all(p["passed"] for p in found)


def test_the_step_is_the_referee_s(tmp_path):
    """To 1e-6, float32."""
    batches = examples(1, 4)
    step = take_step(batches, SINGLE, tmp_path)
    verdict = referee.classify(step, tiny_model(step["model.embed_tokens.weight"].shape[0]), batches)
    assert verdict.name == "token mean" and verdict.from_right < referee.TOLERANCE


@pytest.mark.parametrize("name", list(referee.objectives(None, [])))
def test_every_wrong_objective_is_told_apart(name):
    """Two ranks, four micro-batches: the referee's own step of each objective is classified as that and as no other."""
    batches = examples(2, 4)
    model = tiny_model(64)
    gradient = referee._gradients(model, referee.objectives(model, batches)[name]())
    assert referee.classify(gradient, tiny_model(64), batches).name == name


PLANTED = {
    "first micro-batch alone": "accumulation",
    "mean of micro-batch means": "aggregation",
    "prompt in the loss": "masking",
    "EOS not in the loss": "masking",
}


@pytest.mark.parametrize(("bug", "name"), PLANTED.items())
def test_planted_bugs_are_caught_and_named(bug, name, monkeypatch, tmp_path):
    """Each is put into the trainer itself, as a framework's bug would be."""
    trainer = likelihood.LikelihoodTrainer
    original, made = trainer.compute_loss, likelihood.Places.__getitem__

    def compute_loss(self, model, inputs, *args, num_items_in_batch=None, **kwargs):
        if bug == "mean of micro-batch means":
            num_items_in_batch = 4 * (inputs["labels"][:, 1:] != -100).sum()
        loss = original(self, model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)
        self.seen = getattr(self, "seen", 0) + 1
        return loss * 0 if bug == "first micro-batch alone" and self.seen > 1 else loss

    def item(self, position):
        found = made(self, position)
        if bug == "prompt in the loss" and position >= 0:
            found["labels"] = [-100, *found["input_ids"][1:]]
        if bug == "EOS not in the loss" and position >= 0:
            found["labels"] = [*found["labels"][:-1], -100]
        return found

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    monkeypatch.setattr(likelihood.Places, "__getitem__", item)
    found = probe(SINGLE, 4)
    assert name in [p.name for p in found if not p.passed]
    assert bug in next(p.found for p in found if p.name in ("aggregation", "masking"))
    with pytest.raises(UserError, match=f"fails the audit's probe of {name}"):
        audit(SINGLE, {"accumulation": 4}, tmp_path)
    assert not all(p["passed"] for p in json.loads((tmp_path / "audit.json").read_text()))


def test_what_is_known_of_a_bug_is_said():
    lost = probes.Probe("accumulation", False, "the gradient is that of: first and last micro-batch alone")
    assert "Installed is deepspeed" in probes.known(lost) and "0.19.0 does not" in probes.known(lost)


def test_fingerprint_follows_from_stack_and_layout():
    sft = SFTRecipe(learning_rate=1e-3, epochs=1, sequences_per_step=64)
    one = stamp.fingerprint(SINGLE, sft)
    assert one["accumulation"] == 1 and one["packages"]["torch"] == metadata.version("torch")
    many = stamp.fingerprint(TrainSettings(sequences_per_device=8), sft)
    assert many["accumulation"] == 4 == stamp.fingerprint(TrainSettings(sequences_per_device=22), sft)["accumulation"]
    assert stamp.fingerprint(TrainSettings(sequences_per_device=32), sft)["accumulation"] == 2
    ranks = TrainSettings(ranks=2, engine="zero2", sequences_per_device=32, offload=True)
    found = stamp.fingerprint(ranks, GRPORecipe(learning_rate=1e-3, questions_per_step=8, generations=8))
    assert (found["engine"], found["offload"], found["ranks"], found["accumulation"]) == ("zero2", True, 2, 1)


def test_another_stack_never_passes_an_old_audit(tmp_path, monkeypatch):
    """The job on its node compares its packages with the audit's, whatever the plan found where it was made."""
    settings = SINGLE.model_dump(mode="json")
    gate = Step("audit", "single", 1, {"fingerprint": stamp.fingerprint(SINGLE, SFTRecipe(learning_rate=1, epochs=1))})
    step = Step("train", "x", 1, {}, {}, settings, {"audit": gate})
    for made in (gate, step):
        record_recipe(made, tmp_path)
    (tmp_path / gate.manifest).write_text("{}")
    check_gates(open_job(tmp_path / step.directory))
    here = stamp.versions(stamp.PACKAGES)
    monkeypatch.setattr(stamp, "versions", lambda packages: here | {"deepspeed": "0.18.9"})
    with pytest.raises(UserError, match=r"audited deepspeed .*, this node has 0\.18\.9"):
        check_gates(open_job(tmp_path / step.directory))


@pytest.mark.ranks
@pytest.mark.parametrize(
    "layout", [{"engine": "zero2"}, {"engine": "zero2", "offload": True}, {"engine": "fsdp"}], ids=str
)
def test_several_ranks_pass(layout, tmp_path):
    settings = TrainSettings(ranks=2, **layout)
    recipe = SFTRecipe(learning_rate=1, epochs=1, sequences_per_step=512)
    step = Step(
        "audit", "x", 1, {"fingerprint": stamp.fingerprint(settings, recipe)}, {}, settings.model_dump(mode="json")
    )
    record_recipe(step, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scripts.audit", str(tmp_path / step.directory)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / step.directory / "audit.json").read_text())
    assert all(p["passed"] for p in found), found
