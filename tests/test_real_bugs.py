"""The audit against the real bugs, each in a throw-away environment laid over this one: caught and named."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from scalpel.artifact.step import Step, record_recipe
from scalpel.audit.fingerprint import fingerprint
from scalpel.config.training import TrainSettings
from scalpel.methods.sft import SFTRecipe
from tests.finished import finish

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = Path(numpy.__file__).parents[1]
pytestmark = [pytest.mark.campaign, pytest.mark.ranks]
OFFLOAD = TrainSettings(ranks=2, engine="zero2", offload=True, sequences_per_device=2)
ON_DEVICE = TrainSettings(ranks=2, engine="zero2", sequences_per_device=2)
# DeepSpeed 0.18.9 gathers into views that torch 2.13 does not let it change, where there are two ranks to gather from.
ALONE = OFFLOAD.model_copy(update={"ranks": 1})
ALONE_ON_DEVICE = ON_DEVICE.model_copy(update={"ranks": 1})
OFF = """

_made = TrainingArguments.__post_init__


def _off(self):
    _made(self)
    self.average_tokens_across_devices = False


TrainingArguments.__post_init__ = _off
"""


class Environment:
    """A virtual environment whose own packages win over this one's."""

    def __init__(self, folder: Path, base: Path):
        self.base = base
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python, self.clean = folder / "bin" / "python", os.environ | {"PYTHONPATH": str(ROOT)}
        (self.site,) = (folder / "lib").glob("python*/site-packages")
        (self.site / "rest.pth").write_text(f"import site; site.addsitedir({str(PACKAGES)!r})\n")

    def install(self, requirement: str) -> None:
        """From the package index, by this environment's pip; the test is skipped where it cannot be had."""
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [*command, "--target", self.site, requirement], env=os.environ | {"DS_BUILD_OPS": "0"}, capture_output=True,
            text=True, timeout=900,
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            pytest.skip(f"{requirement} cannot be had here: {said}")

    def audit(
        self, results: Path, settings: TrainSettings, accumulation: int
    ) -> tuple[subprocess.CompletedProcess, dict]:
        """The audit's program, and its probes by name."""
        recipe = SFTRecipe(learning_rate=1, epochs=1, sequences_per_step=2 * settings.ranks * accumulation)
        seal = fingerprint(settings, recipe)
        assert seal["accumulation"] == accumulation
        base = Step("base", "tiny", 1, {})
        finish(base, results, {"model": self.base})
        step = Step("audit", "x", 1, {"fingerprint": seal}, {"base": base}, settings.model_dump(mode="json"))
        record_recipe(step, results)
        done = subprocess.run(
            [self.python, "-m", "scripts.audit", results / step.directory], cwd=results, text=True, timeout=900,
            capture_output=True, env=self.clean | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        written = results / step.directory / "audit.json"
        assert written.is_file(), done.stderr[-3000:]
        return done, {probe["name"]: probe for probe in json.loads(written.read_text())}


@pytest.fixture(scope="module")
def affected(tmp_path_factory, tiny_base) -> Environment:
    made = Environment(tmp_path_factory.mktemp("affected"), tiny_base)
    made.install("deepspeed==0.18.9")
    return made


def test_the_last_deepspeed_that_loses_micro_batches(affected, tmp_path):
    done, probes = affected.audit(tmp_path, ALONE, 4)
    assert done.returncode == 2
    assert not probes["accumulation"]["passed"]
    assert "do not reach the optimizer: 1 of rank 0, 2 of rank 0" in probes["accumulation"]["found"]
    assert "first and last micro-batch alone" in probes["aggregation"]["found"]
    assert "fails the audit's probe of accumulation" in done.stderr
    assert "Installed is deepspeed 0.18.9; DeepSpeed 0.15.2 to 0.18.9 lose micro-batches" in done.stderr


@pytest.mark.parametrize(("settings", "accumulation"), [(ALONE, 2), (ALONE_ON_DEVICE, 4)], ids=["two", "on device"])
def test_where_that_deepspeed_is_exact(settings, accumulation, affected, tmp_path):
    """Two micro-batches, or the optimizer on the device: the bug does not show there, and nothing is said."""
    done, probes = affected.audit(tmp_path, settings, accumulation)
    assert done.returncode == 0 and all(probe["passed"] for probe in probes.values()), done.stderr[-3000:]


@pytest.mark.parametrize("accumulation", [2, 4])
def test_the_installed_deepspeed_passes(accumulation, tiny_base, tmp_path):
    here = Environment(tmp_path / "here", tiny_base)
    done, probes = here.audit(tmp_path, OFFLOAD, accumulation)
    assert done.returncode == 0 and all(probe["passed"] for probe in probes.values()), done.stderr[-3000:]


def test_a_transformers_that_does_not_average_tokens(tiny_base, tmp_path):
    """The installed one with average_tokens_across_devices off, whoever asks for it: the mean of rank means."""
    environment = Environment(tmp_path / "environment", tiny_base)
    package = Path(importlib.util.find_spec("transformers").origin).parent
    shutil.copytree(package, environment.site / "transformers", copy_function=os.symlink)
    edited = environment.site / "transformers" / "training_args.py"
    text = edited.read_text()
    edited.unlink()
    edited.write_text(text + OFF)
    done, probes = environment.audit(tmp_path, ON_DEVICE, 4)
    assert done.returncode == 2 and probes["accumulation"]["passed"] and not probes["aggregation"]["passed"]
    assert probes["aggregation"]["found"] == "the gradient is that of: mean of rank means"
    assert "fails the audit's probe of aggregation" in done.stderr
    assert "Installed is transformers" in done.stderr and "set average_tokens_across_devices" in done.stderr
