"""Faults on a real cluster, each of which must end in a run that equals the undisturbed one, file by file.

The scenarios mostly wait for SLURM and run side by side; a test only asks how its own ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalpel.launch.slurm import seconds_of
from tests import hostile_path as hostile
from tests.slurm.conftest import Checkout, Cluster

pytestmark = pytest.mark.slurm
SIDE_BY_SIDE = 4
TRIO, N6, N7 = threading.Lock(), threading.Lock(), threading.Lock()  # nodes that a scenario has for itself
TWO_RANKS = {
    "train_settings": {
        "ranks": 2,
        "engine": "zero2",
        "sequences_per_device": 8,
        "server": {"gpus": 0, "start_seconds": 120},
    }
}


class Lab:
    """What a scenario works with."""

    def __init__(self, cluster: Cluster, undisturbed: Future):
        self.cluster, self._undisturbed = cluster, undisturbed
        self.checkouts: list[Checkout] = []

    @property
    def undisturbed(self) -> Checkout:
        return self._undisturbed.result()

    @property
    def key(self) -> str:
        """Which result of the train stage the scenarios make."""
        (key,) = (key for key in self.undisturbed.manifests() if key.startswith("train/grpo-"))
        return key

    @property
    def target(self) -> str:
        return f"results/{self.key}/manifest.json"

    def close(self) -> None:
        """End what a scenario that failed left running."""
        for checkout in self.checkouts:
            checkout.end()

    def checkout(self, name: str, overrides: dict | None = None, **site: str) -> Checkout:
        """One in which nothing but training is left to do; on nodes that stay well, if no others are asked for."""
        site = {"constraint": "steady"} | site
        return self.note(Checkout(self.cluster, name, self.undisturbed.root / "results", overrides, **site))

    def note(self, checkout: Checkout) -> Checkout:
        self.checkouts.append(checkout)
        return checkout

    def equal(self, checkout: Checkout) -> None:
        assert checkout.manifests()[self.key] == self.undisturbed.manifests()[self.key]
        train = checkout.root / "results" / self.key
        assert not (train / "state").exists() and not list(train.glob("lease.*"))
        assert not checkout.pids("scripts.")

    def hold(self, checkout: Checkout) -> int:
        """Stop the training process where it is, once it has saved a state; returns its id."""
        checkout.saved()
        (pid,) = checkout.pids("-m scripts.train ")
        os.kill(pid, signal.SIGSTOP)
        return pid


# ---------------------------------------------------------------- the scenarios


def node_killed(lab: Lab) -> None:
    """SLURM finds the node dead, queues the job again elsewhere, and the run resumes from its last state."""
    with TRIO:
        run = lab.checkout("node_killed", constraint="trio")
        run.start(lab.target)
        lab.hold(run)
        job = run.job()
        lab.cluster.script("kill-node", job["nodes"])
        try:
            assert run.wait() == 0, run.log()
        finally:
            lab.cluster.script("start-node", job["nodes"])
        (same,) = run.submitted()
        assert same["id"] == job["id"] and same["nodes"] != job["nodes"], same
        assert "resuming from step" in run.job_log()
        lab.equal(run)


def cancelled(lab: Lab) -> None:
    """scancel: the run saves, Snakemake submits it once more."""
    run = lab.checkout("cancelled")
    run.start(lab.target)
    lab.hold(run)
    first = run.job()["id"]
    lab.cluster.ask("scancel", first)
    assert run.wait() == 0, run.log()
    assert {job["state"] for job in run.submitted()} == {"CANCELLED", "COMPLETED"}
    assert "saved after step" in run.slurm_log(first)
    lab.equal(run)


def time_limit_near(lab: Lab) -> None:
    """The run saves and has its job queued again: the same job, no attempt of Snakemake's lost."""
    run = lab.checkout("time_limit_near", {"resources": {"train": {"runtime": 2}}})
    run.start(lab.target)
    held = lab.hold(run)
    left = seconds_of(lab.cluster.ask("squeue", "-h", "-j", run.job()["id"], "-o", "%L"))
    time.sleep(max(left - 30, 0))  # half of the time that training was given is over
    os.kill(held, signal.SIGCONT)
    assert run.wait() == 0, run.log()
    (job,) = run.submitted()
    assert "resuming from step" in run.job_log()
    assert "Restarts=1" in lab.cluster.ask("scontrol", "show", "job", job["id"])
    lab.equal(run)


def time_limit_reached(lab: Lab) -> None:
    """A step longer than the margin: SLURM's SIGTERM makes the run save; the next attempt has more time."""
    run = lab.checkout("time_limit_reached", {"resources": {"train": {"runtime": 1}}})
    run.start(lab.target)
    lab.hold(run)  # SLURM wakes it when the time is over
    first = run.job()["id"]
    assert run.wait() == 0, run.log()
    assert {job["state"] for job in run.submitted()} == {"TIMEOUT", "COMPLETED"}
    assert "saved after step" in run.slurm_log(first), run.slurm_log(first)
    lab.equal(run)


def _preempted(lab: Lab, name: str, partition: str, node: str) -> Checkout:
    run = lab.checkout(name, gpu_partition=partition, constraint=node.replace("gpu", "n"))
    run.start(lab.target)
    lab.hold(run)
    lab.cluster.ask("sbatch", "-p", "urgent", "-w", node, "--gpus=8", "-o", "/dev/null", "--wrap", "sleep 2")
    assert run.wait() == 0, run.log()
    lab.equal(run)
    return run


def preempted_and_queued_again(lab: Lab) -> None:
    with N6:
        run = _preempted(lab, "preempted_requeue", "scavenge", "gpu6")
    (job,) = run.submitted()
    assert "Restarts=1" in lab.cluster.ask("scontrol", "show", "job", job["id"])


def preempted_and_cancelled(lab: Lab) -> None:
    """PreemptMode=CANCEL: PREEMPTED is no end in the plugin's eyes; a minute later it is in ours."""
    with N7:
        run = _preempted(lab, "preempted_cancel", "spare", "gpu7")
    assert {job["state"] for job in run.submitted()} == {"PREEMPTED", "COMPLETED"}


def main_killed(lab: Lab) -> None:
    """kill -9 of Snakemake: its job runs on, and the next start waits for it instead of training twice."""
    run = lab.checkout("main_killed")
    run.start(lab.target)
    held = lab.hold(run)
    os.killpg(run.main.pid, signal.SIGKILL)
    run.main.wait()
    run.start(lab.target)
    run.until(lambda: "of another start does job" in run.log(), "an adopted job")
    os.kill(held, signal.SIGCONT)
    assert run.wait() == 0, run.log()
    assert len(run.submitted()) == 1
    lab.equal(run)


def two_starts(lab: Lab) -> None:
    """Two people start the same run in one checkout: one job does it, both see it finished."""
    run = lab.checkout("two_starts")
    first = run.start(lab.target)
    held = lab.hold(run)
    run.start(lab.target)
    run.until(lambda: "of another start does job" in run.log(), "an adopted job")
    os.kill(held, signal.SIGCONT)
    assert run.wait() == 0 and first.wait(100) == 0, run.log()
    assert len(run.submitted()) == 1
    lab.equal(run)


def broken_gpu(lab: Lab) -> None:
    """The job finds out in seconds that its node has lost a GPU, and the next attempt runs elsewhere."""
    with TRIO:
        run = lab.checkout("broken_gpu", constraint="trio")
        lab.cluster.broken.write_text("gpu3\n")
        try:
            run.finish(lab.target)
        finally:
            lab.cluster.broken.unlink()
    jobs = sorted(run.submitted(), key=lambda job: int(job["id"]))
    assert [job["state"] for job in jobs] == ["FAILED", "COMPLETED"] and jobs[0]["nodes"] == "gpu3", jobs
    assert "nvidia-smi says: Unable to determine the device handle" in run.slurm_log(jobs[0]["id"])
    assert (run.root / "results/logs/unhealthy_nodes/gpu3").exists()
    lab.equal(run)


def disk_full(lab: Lab) -> None:
    """One sentence, what was saved is kept, and with room again the run resumes."""
    run = lab.note(Checkout(lab.cluster, "disk_full", constraint="steady"))
    results = run.root / "results"
    results.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", results], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk to fill: mount says {mounted.stderr.decode().strip()}")
    try:
        run.take(lab.undisturbed.root / "results")
        run.start(lab.target, "--retries", "0")
        held = lab.hold(run)
        ballast = os.open(results / "ballast", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while True:
                os.write(ballast, bytes(4096))
        os.close(ballast)
        os.kill(held, signal.SIGCONT)
        assert run.wait() != 0
        assert "No space left on the disk of" in run.slurm_log(run.submitted()[0]["id"])
        assert not (run.root / lab.target).exists()
        (results / "ballast").unlink()
        run.finish(lab.target)
        lab.equal(run)
    finally:
        subprocess.run(["umount", "--lazy", results], check=True)


LATE = """import os, subprocess, sys
if "scripts.train" in sys.orig_argv:
    now = os.replace
    def replace(source, target, **more):
        if not str(target).endswith("/manifest.json"):
            return now(source, target, **more)
        now(source, f"{target}.late", **more)
        subprocess.Popen(["sh", "-c", f"sleep 6; mv {target}.late {target}"], start_new_session=True)
    os.replace = replace
"""


def files_shown_late(lab: Lab) -> None:
    """The manifest is seen six seconds after the job wrote it; nothing is taken for missing."""
    run = lab.checkout("late_files")
    (run.root / "sitecustomize.py").write_text(LATE)
    run.finish(lab.target)
    assert len(run.submitted()) == 1
    lab.equal(run)


def config_edited(lab: Lab) -> None:
    """A queued job trains what it was submitted for, whatever config.yaml says when it starts."""
    with N6:
        run = lab.checkout("config_edited", constraint="n6")
        lab.cluster.ask("scontrol", "update", "nodename=gpu6", "state=drain", "reason=test")
        try:
            run.start(lab.target)
            run.job("PENDING")
            run.configure({"methods": {"grpo": {"learning_rate": 5.0e-4}}})
        finally:
            lab.cluster.ask("scontrol", "update", "nodename=gpu6", "state=resume")
        assert run.wait() == 0, run.log()
    lab.equal(run)
    assert len(run.manifests()) == 1
    again = subprocess.run(
        ["snakemake", "--profile", "slurm", "-n"], cwd=run.root, env=lab.cluster.environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "results/train/grpo-" in again.stdout and lab.target not in again.stdout  # the new rate, a new result


def _same_training(one: Checkout, other: Checkout) -> None:
    (a,), (b,) = (sorted(run.root.glob("results/train/grpo-*")) for run in (one, other))
    for column in ("loss", "grad_norm", "reward"):
        found, expected = (
            np.array(pq.read_table(run / "log.parquet").column(column).to_pylist(), float) for run in (a, b)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6, err_msg=column)
    rows = [pq.read_table(run / "rollouts.parquet", columns=["step", "row", "completion"]) for run in (a, b)]
    assert rows[0].equals(rows[1])


def server_killed(lab: Lab) -> None:
    """Two ranks and a rollout server, which dies mid-way, equal two ranks and one that does not."""
    quiet = lab.checkout("two_ranks", TWO_RANKS).finish(lab.target)
    run = lab.checkout("server_killed", TWO_RANKS)
    run.start(lab.target)
    journal = run.root / "results" / lab.key / "state" / "rollouts.jsonl"
    run.until(lambda: journal.exists() and '"step": 3' in journal.read_text(), "three steps")
    (server,) = run.pids("scalpel.inference.server")
    os.kill(server, signal.SIGKILL)
    assert run.wait() == 0, run.log()
    (job,) = run.submitted("train")
    assert "starting it again" in run.slurm_log(job["id"])
    _same_training(run, quiet)
    assert not run.pids("scalpel.launch")


def three_nodes(lab: Lab) -> None:
    """A rank on each of two nodes and the server on a third equal two ranks on one node."""
    quiet = lab.checkout("one_node", TWO_RANKS).finish(lab.target)
    server = TWO_RANKS["train_settings"]["server"] | {"nodes": 1}
    spread = {"train_settings": TWO_RANKS["train_settings"] | {"ranks": 1, "nodes": 2, "server": server}}
    spread["resources"] = {"audit": {"gpus": 8, "mem_mb": 4000, "runtime": 10}}  # where the run itself will be
    with TRIO:
        run = lab.checkout("three_nodes", spread, constraint="trio").finish(lab.target)
    (job,) = run.submitted("train")
    assert job["nodes"] == "gpu[3-5]"
    _same_training(run, quiet)
    assert not run.pids("scalpel.launch") and not run.pids("scripts.train")


def refused(lab: Lab) -> None:
    """What the cluster does not take is said before anything is submitted, with the field to look at."""
    for field, value, said in (
        ("account", "nobody", "`account` and `partition` of slurm/site.yaml"),
        ("gpu_partition", "big", "`gpu_partition` of slurm/site.yaml"),
        ("gpu_model", "b300", "`gpu_model`, `gpu_partition` and `constraint` of slurm/site.yaml"),
        ("constraint", "gold", "`constraint` of slurm/site.yaml"),
        ("qos", "now", "`qos` of slurm/site.yaml"),
    ):
        run = lab.checkout(f"refused_{field}", **{field: value})
        run.start(lab.target)
        assert run.wait(60) != 0 and said in run.log() and "Traceback" not in run.log(), f"{field}: {run.log()}"
        assert not run.submitted()
    run = lab.checkout("accepted")
    command = [sys.executable, "-m", "scripts.preflight", "--slurm", "--scale", "faults"]
    environment = lab.cluster.environment | {"PYTHONPATH": str(run.root)}
    done = subprocess.run(command, cwd=run.root, env=environment, capture_output=True, text=True)
    assert "sbatch --test-only takes all" in done.stdout, done.stdout + done.stderr


def hostile_path(lab: Lab) -> None:
    """Checkout and Python lie where a shell would execute their names; two ranks and a server train there."""
    run = lab.checkout(hostile.NAME, TWO_RANKS)
    run.snakemake = [str(hostile.own_python(run.root)), "-m", "snakemake"]
    run.finish(lab.target)
    (job,) = run.submitted("train")
    assert job["state"] == "COMPLETED" and "[server] transformers answers" in run.slurm_log(job["id"])
    assert not hostile.executed(lab.cluster.folder)
    run.start(lab.target, "--dry-run")
    assert run.wait() == 0 and "Nothing to be done" in run.log()


def twenty_kills(lab: Lab) -> None:
    """The whole DAG, while processes of its jobs, its jobs, and Snakemake itself are killed at random moments."""
    seed = int(os.environ.get("KILLS_SEED", "0")) or random.randrange(10**6)
    print(f"KILLS_SEED={seed}", flush=True)
    chance = random.Random(seed)
    run = lab.note(Checkout(lab.cluster, "twenty_kills", constraint="steady"))
    killed: list[str] = []
    run.start()
    while len(killed) < 20:
        time.sleep(chance.uniform(0.5, 7))
        if run.main.poll() is not None:
            if not run.main.returncode:  # finished too early: the later half once more
                for stage in ("train", "evaluate", "kl", "weight_change"):
                    shutil.rmtree(run.root / "results" / stage)
            run.start()
            continue
        processes = {run.cluster.processes().get(pid, ""): pid for pid in run.pids("scripts.")}
        jobs = {f"job {job['comment']}": job["id"] for job in run.submitted() if job["state"] == "RUNNING"}
        # Nobody is killed for ever: each process and each job twice at most, Snakemake six times.
        most = {"snakemake": 6}
        left = [what for what in [*processes, *jobs, *most] if killed.count(what) < most.get(what, 2)]
        if not left:
            continue
        victim = chance.choice(left)
        if victim == "snakemake":
            os.killpg(run.main.pid, signal.SIGKILL)
            run.main.wait()
        elif victim in jobs:
            subprocess.run(["scancel", jobs[victim]], env=lab.cluster.environment)
        else:
            try:
                os.kill(processes[victim], signal.SIGKILL)
            except ProcessLookupError:
                continue
        killed.append(victim)
    end = time.monotonic() + 900
    while run.main.poll() is None or run.main.returncode:
        assert time.monotonic() < end, f"seed {seed}: {run.log()}"
        if run.main.poll() is not None:
            run.start()
        time.sleep(0.5)
    print("killed", *killed, sep="\n  ")
    stages = ("toy", "questions", "base", "data", "order", "train", "evaluate", "kl", "weight_change")
    found, expected = run.manifests(stages), lab.undisturbed.manifests(stages)
    assert found.keys() == expected.keys()
    different = [f"{key}/{name}" for key in found for name in found[key] | expected[key]
                 if found[key].get(name) != expected[key].get(name)]  # fmt: skip
    assert not different, f"seed {seed}"
    assert (run.root / "results/report/faults/index.html").exists() and not run.pids("scripts.")


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (  # the longest first
        twenty_kills, preempted_and_cancelled, time_limit_reached, server_killed, node_killed, time_limit_near,
        preempted_and_queued_again, three_nodes, disk_full, config_edited, main_killed, two_starts, broken_gpu,
        cancelled, files_shown_late, hostile_path, refused,
    )
}  # fmt: skip


@pytest.fixture(scope="session")
def outcomes(request, cluster):
    """Every scenario that was asked for, and the undisturbed run, under way: name -> Future."""
    asked = {item.callspec.params["name"] for item in request.session.items if item.name.startswith("test_fault[")}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        undisturbed = pool.submit(lambda: Checkout(cluster, "undisturbed").finish())

        def carry_out(name: str) -> None:
            lab = Lab(cluster, undisturbed)
            try:
                SCENARIOS[name](lab)
            finally:
                lab.close()

        scenarios = {name: pool.submit(carry_out, name) for name in SCENARIOS if name in asked}
        yield scenarios | {"undisturbed": undisturbed}
        pool.shutdown(cancel_futures=True)


def test_undisturbed(outcomes):
    """Everything is there, every job's log is kept, one folder per run, and nothing is left to do."""
    undisturbed = outcomes["undisturbed"].result(timeout=600)
    assert (undisturbed.root / "results/report/faults/index.html").exists()
    for job in undisturbed.submitted():
        assert job["state"] == "COMPLETED" and undisturbed.slurm_log(job["id"])
    folders = {path.parent.name for path in undisturbed.root.glob("results/logs/slurm/rule_train/*/*.log")}
    assert {name.rsplit("_", 1)[0] for name in folders} == {"grpo", "sft_1ep"}
    again = subprocess.run(
        ["snakemake", "-n", "--profile", "slurm"], cwd=undisturbed.root, env=undisturbed.cluster.environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize("name", SCENARIOS)
def test_fault(name, outcomes):
    outcomes[name].result(timeout=900)
