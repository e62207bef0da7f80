"""Several ranks and a rollout server, for real here: ZeRO-2 or FSDP over gloo, completions by transformers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from scalpel.artifact.files import MANIFEST
from scalpel.artifact.step import Step, record_recipe
from scalpel.errors import AGAIN
from scalpel.launch.crew import compile_on_this_host
from scalpel.methods.grpo import GRPORecipe
from scalpel.methods.sft import SFTRecipe
from tests.finished import finish

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.ranks
SFT = SFTRecipe(learning_rate=1e-3, sequences_per_step=6, epochs=2, checkpoints=2, max_tokens=400)
GRPO = GRPORecipe(
    learning_rate=1e-3, questions_per_step=2, generations=4, steps=4, checkpoints=2, max_completion_tokens=16,
    temperature=1.0,
)  # fmt: skip
SERVER = {"gpus": 0, "start_seconds": 120}
RANKS = {"ranks": 2, "engine": "zero2", "sequences_per_device": 2}
OTHER_RANKS = """
import os, runpy
from scalpel.launch.crew import Crew
start = Crew.start
def with_other_ranks(self, name, module, *more, **options):
    start(self, name, os.environ["RANK_MODULE"] if module == "scripts.rank" else module, *more, **options)
Crew.start = with_other_ranks
runpy.run_module("scripts.train", run_name="__main__")
"""


def results(root: Path, model: Path, data: tuple[Path, Path]) -> dict[str, Step]:
    """Finished base, data and order steps around files made elsewhere."""
    steps = {"base": Step("base", "base", 1, {"of": "test"}), "data": Step("data", "questions", 1, {"of": "test"})}
    steps["order"] = Step("order", "order", 1, {"seed": 3}, {"data": steps["data"]})
    for role, files in {
        "base": {"model": model},
        "data": {"kept.parquet": data[0]},
        "order": {"order.parquet": data[1]},
    }.items():
        finish(steps[role], root, files)
    return steps


class Run:
    """A train step in a results directory of its own, carried out by its stage program."""

    def __init__(self, root: Path, recipe, settings: dict, model: Path, data):
        root.mkdir()
        step = Step("train", "run", 1, recipe.identity(), results(root, model, data), settings)
        record_recipe(step, root)
        self.root, self.directory = root, root / step.directory

    def start(self, *held: str, ranks: str = "tests.held_rank") -> subprocess.Popen:
        """held: moments at which the first of several ranks waits (tests/held_rank.py). ranks: the module that several
        ranks run in place of scripts.rank."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        program = ["-c", OTHER_RANKS] if held or ranks != "tests.held_rank" else ["-m", "scripts.train"]
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK_MODULE": ranks}
        return subprocess.Popen(
            [sys.executable, *program, str(self.directory)],
            env=environment | {"HELD": " ".join(held), "HELD_IN": str(self.root)},
            cwd=self.root,
            stderr=subprocess.STDOUT,
            stdout=open(self.root / "log", "a"),
        )

    def held(self, moment: str, process: subprocess.Popen) -> None:
        """Until the first rank waits at a moment."""
        while not (self.root / moment).exists():
            assert process.poll() is None, self.log()
            time.sleep(0.01)

    def go_on(self, moment: str) -> None:
        (self.root / f"{moment}.go").touch()

    def finish(self) -> "Run":
        assert self.start().wait(timeout=300) == 0, self.log()
        return self

    def log(self) -> str:
        return (self.root / "log").read_text()[-6000:]

    def column(self, name: str) -> np.ndarray:
        return np.array(pq.read_table(self.directory / "log.parquet").column(name).to_pylist())

    def weights(self) -> dict[str, torch.Tensor]:
        last = json.loads((self.directory / "checkpoints.json").read_text())[-1]
        return load_file(self.directory / last["path"] / "model.safetensors")

    def processes(self) -> list[int]:
        """Processes whose command line names this run or its base model."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:
                continue
            if str(self.root).encode() in line:
                found.append(int(path.parent.name))
        return found


def assert_same_training(run: Run, reference: Run) -> None:
    np.testing.assert_allclose(run.column("loss"), reference.column("loss"), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(run.column("grad_norm"), reference.column("grad_norm"), rtol=1e-3)
    for mean in {"entropy", "mean_token_accuracy"} & set(pq.read_schema(run.directory / "log.parquet").names):
        np.testing.assert_allclose(run.column(mean), reference.column(mean), rtol=2e-3, err_msg=mean)
    for name, tensor in reference.weights().items():
        torch.testing.assert_close(run.weights()[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    mine, theirs = (pq.read_table(r.directory / "questions.parquet").sort_by("position") for r in (run, reference))
    assert mine.equals(theirs)


@pytest.fixture(scope="module")
def make(tiny_base, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    numbers = iter(range(100))
    return lambda recipe, settings: Run(folder / f"run{next(numbers)}", recipe, settings, tiny_base, tiny_data)


@pytest.fixture(scope="module")
def sft(make) -> Run:
    return make(SFT, {"sequences_per_device": 6}).finish()


@pytest.fixture(scope="module")
def grpo(make) -> Run:
    """One rank whose completions come from the server: what more ranks are compared with."""
    return make(GRPO, {"sequences_per_device": 8, "server": SERVER}).finish()


@pytest.mark.parametrize("engine", ["zero2", pytest.param("fsdp", marks=pytest.mark.campaign)])
def test_ranks_train_as_one(engine, make, sft):
    """The last step has fewer sequences than ranks x micro-batch: blanks fill it."""
    run = make(SFT, RANKS | {"engine": engine}).finish()
    assert_same_training(run, sft)
    assert not run.processes()


def test_between_micro_batches_fsdp_holds_shards_of_gradients_alone(make, sft):
    run = make(SFT, RANKS | {"engine": "fsdp", "sequences_per_device": 1})
    assert run.start(ranks="tests.watched_rank").wait(timeout=300) == 0, run.log()
    for rank in range(2):
        seen = [json.loads(line) for line in (run.root / f"gradients-rank{rank}.jsonl").read_text().splitlines()]
        assert len(seen) == 3 * len(run.column("loss"))  # three micro-batches a step
        assert {one["unsharded"] for one in seen} == {0}
        assert all(0.4 < one["sharded"] / one["whole"] < 0.6 for one in seen)
    assert_same_training(run, sft)


@pytest.mark.campaign
def test_ranks_train_as_one_in_bfloat16(make):
    """Three micro-batches a rank, added up in float32; products differ in their last of 8 bits."""
    recipe = SFT.model_copy(update={"dtype": "bfloat16"})
    one = make(recipe, {"sequences_per_device": 6}).finish()
    for engine in ("zero2", "fsdp"):
        two = make(recipe, RANKS | {"engine": engine, "sequences_per_device": 1}).finish()
        np.testing.assert_allclose(two.column("loss"), one.column("loss"), rtol=2e-3, err_msg=engine)
        np.testing.assert_allclose(two.column("grad_norm"), one.column("grad_norm"), rtol=5e-2, err_msg=engine)
        for name, tensor in one.weights().items():
            torch.testing.assert_close(two.weights()[name].float(), tensor.float(), rtol=0.05, atol=0.02)


def test_ranks_with_a_server_train_as_one(make, grpo):
    run = make(GRPO, RANKS | {"server": SERVER}).finish()
    assert_same_training(run, grpo)
    names = ["step", "row", "completion"]
    assert pq.read_table(run.directory / "rollouts.parquet", columns=names).equals(
        pq.read_table(grpo.directory / "rollouts.parquet", columns=names)
    )


def rank_or_server(run: Run, what: str) -> list[int]:
    return [pid for pid in run.processes() if what.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.campaign
def test_server_killed_while_it_writes_completions(make, grpo):
    run = make(GRPO, RANKS | {"server": SERVER})
    moments = ("rollouts.jsonl:1", "rollouts.jsonl:3")
    process = run.start(*moments)
    for moment in moments:
        run.held(moment, process)
        servers = rank_or_server(run, "scalpel.inference.server")
        assert len(servers) == 1
        os.kill(servers[0], signal.SIGKILL)
        run.go_on(moment)
    assert process.wait(timeout=300) == 0, run.log()
    assert_same_training(run, grpo)
    assert run.log().count("starting it again") == 2 and not run.processes()


@pytest.mark.campaign
def test_server_that_keeps_dying_ends_the_job(make):
    broken = SERVER | {"restarts": 1}
    run = make(GRPO.model_copy(update={"inference": "vllm"}), RANKS | {"server": broken})
    started = time.monotonic()
    assert run.start().wait(timeout=120) == 1  # a server may live at the next try
    assert "too often (train_settings.server.restarts)" in run.log() and "Traceback" in run.log()
    assert time.monotonic() - started < 100 and not run.processes()


@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.campaign)])
def test_ended_in_the_middle_resumes_where_it_was(name, make, grpo):
    """SIGKILL of a rank fails the job and ends the others; SIGTERM of the job saves and exits with AGAIN."""
    run = make(GRPO, RANKS | {"server": SERVER})
    process = run.start("rollouts.jsonl:1")
    run.held("rollouts.jsonl:1", process)
    if name == "SIGKILL":
        os.kill(rank_or_server(run, "-m\0tests.held_rank")[0], signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == (1 if name == "SIGKILL" else AGAIN), run.log()
    assert ("was ended by signal 9" if name == "SIGKILL" else "saved after step") in run.log()
    assert not run.processes() and not (run.directory / MANIFEST).exists()
    run.finish()
    assert ("resuming from step" in run.log()) == (name == "SIGTERM")
    assert_same_training(run, grpo)


def test_launcher_killed_leaves_no_process(make):
    run = make(GRPO, RANKS | {"server": SERVER})
    process = run.start("rollouts.jsonl:1")
    run.held("rollouts.jsonl:1", process)
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while run.processes() and time.monotonic() < end:
        time.sleep(0.1)
    assert not run.processes()


def test_one_process_stops_for_its_time_limit_and_resumes_bitwise(make, tmp_path):
    """A squeue that says how much time is left stands for SLURM's; the job is asked to be queued again."""
    reference = make(SFT, {"sequences_per_device": 6}).finish()
    run = make(SFT, {"sequences_per_device": 6, "stop_before_seconds": 600})
    fake = tmp_path / "bin"
    fake.mkdir()
    for command, line in {"squeue": "echo 0:00", "scontrol": f'echo "$@" >> {tmp_path}/asked; kill -9 $PPID'}.items():
        (fake / command).write_text(f"#!/bin/sh\n{line}\n")
        (fake / command).chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{fake}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = [sys.executable, "-m", "scripts.train", str(run.directory)]
    assert subprocess.run(command, env=environment, cwd=run.root, capture_output=True).returncode == -signal.SIGKILL
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert list(run.directory.glob("state/checkpoint-*")) and not (run.directory / MANIFEST).exists()
    run.finish()
    manifests = [json.loads((r.directory / MANIFEST).read_text())["files"] for r in (run, reference)]
    assert manifests[0] == manifests[1]


def test_a_lock_of_a_killed_compiler_is_forgotten(tmp_path, monkeypatch):
    """torch waits for ever for it: every later run would hang. One that a process has open is at work."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    dead, alive = (tmp_path / socket.gethostname() / name / "lock" for name in ("dead", "alive"))
    for lock in (dead, alive):
        lock.parent.mkdir(parents=True)
        lock.touch()
    with open(alive):
        compile_on_this_host()
    assert alive.exists() and not dead.exists()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / socket.gethostname())
