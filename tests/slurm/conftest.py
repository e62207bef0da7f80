"""The loopback cluster, and checkouts of the project in which its users work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scalpel.artifact.files import MANIFEST

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
PARTS = ("Snakefile", "config.yaml", "profiles", "scalpel", "scripts", "slurm", "workflow")
# Eight GPUs on every node, but for the nodes that the file names: their driver has lost one.
NVIDIA_SMI = """#!/bin/sh
if grep -qx "$SLURMD_NODENAME" {broken} 2>/dev/null; then
  echo "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error"; exit 255
fi
for i in 0 1 2 3 4 5 6 7; do echo "$i, NVIDIA H100 80GB HBM3, 81559, 580.65.06, 0"; done
"""


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.state = folder, folder / "slurm"
        self.broken = folder / "broken_nodes"
        bin_ = folder / "bin"
        bin_.mkdir()
        (bin_ / "nvidia-smi").write_text(NVIDIA_SMI.format(broken=self.broken))
        (bin_ / "nvidia-smi").chmod(0o755)
        (folder / "tmp").mkdir()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SCALPEL"))}
        path = [self.state / "bin", bin_, Path(sys.executable).parent, *os.environ["PATH"].split(":")]
        self.environment = clean | {
            "PATH": ":".join(map(str, path)), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder), "MPLCONFIGDIR": str(folder / "cache"),
        }  # fmt: skip

    def script(self, *words: str) -> None:
        done = subprocess.run([SCRIPT, words[0], self.state, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def processes(self) -> dict[int, str]:
        """Command lines of all processes of this folder: daemons, jobs, and what they started."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line, environ = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            except OSError:
                continue
            if int(path.name) != os.getpid() and str(self.folder).encode() in line + environ:
                found[int(path.name)] = line.replace(b"\0", b" ").decode(errors="replace")
        return found


class Checkout:
    """A copy of the project, with the results of another where they are given."""

    def __init__(self, cluster: Cluster, name: str, results: Path | None = None, overrides=None, **site: str):
        self.cluster, self.root = cluster, cluster.folder / name
        self.main: subprocess.Popen | None = None
        self.snakemake = ["snakemake"]
        self.root.mkdir()
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, self.root / part)
        shutil.copy(Path(__file__).with_name("study.yaml"), self.root / "workflow" / "studies" / "faults.yaml")
        self.configure(overrides or {})
        scale = yaml.safe_load((ROOT / "workflow" / "scales" / "laptop.yaml").read_text())
        del scale["studies"]  # of another study
        (self.root / "workflow" / "scales" / "faults.yaml").write_text(yaml.safe_dump(scale))
        (self.root / "slurm" / "scale.yaml").write_text("scale: faults\n")
        site = {"account": "lab", "partition": "cpu", "gpu_partition": "gpu", "gpu_model": "h100"} | site
        (self.root / "slurm" / "site.yaml").write_text(yaml.safe_dump(site))
        if results:
            self.take(results)

    def take(self, results: Path) -> None:
        """Copy what a training run needs from the results of another checkout."""
        for made in results.glob("*/*/manifest.json"):
            if made.parents[1].name in ("toy", "questions", "base", "data", "order", "audit"):
                shutil.copytree(made.parent, self.root / made.parent.relative_to(results.parent))

    def configure(self, overrides: dict) -> None:
        config = yaml.safe_load(Path(__file__).with_name("config.yaml").read_text())
        for key, value in overrides.items():
            config["overrides"].setdefault(key, {})
            for inner, given in value.items():
                old = config["overrides"][key].get(inner)
                config["overrides"][key][inner] = old | given if isinstance(old, dict) else given
        (self.root / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self, *words: str) -> subprocess.Popen:
        """``snakemake --profile slurm``, looking for news every second instead of every so many."""
        command = [*self.snakemake, "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "1", *words]
        with open(self.root / "main.log", "a") as log:
            self.main = subprocess.Popen(
                command, cwd=self.root, env=self.cluster.environment, start_new_session=True, stdout=log, stderr=log
            )
        return self.main

    def wait(self, seconds: float = 900) -> int:
        try:
            return self.main.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.main.pid, signal.SIGKILL)
            queue = self.cluster.ask("squeue", "-o", "%i %T %r %k %Z")
            raise AssertionError(f"not finished after {seconds} s\n{queue}\n{self.log()}") from None

    def end(self) -> None:
        """No process of this checkout is left, whatever state it is in."""
        if self.main and self.main.poll() is None:
            os.killpg(self.main.pid, signal.SIGKILL)
            self.main.wait()
        for job in self.submitted():
            if job["state"] in ("RUNNING", "PENDING"):
                self.cluster.ask("scancel", "--signal=KILL", "--full", job["id"])
                self.cluster.ask("scancel", job["id"])

    def finish(self, *words: str) -> Checkout:
        self.start(*words)
        assert self.wait() == 0, self.log()
        return self

    def log(self) -> str:
        """The last of what Snakemake said, and of what every training job said."""
        jobs = sorted(self.root.glob("results/logs/slurm/rule_train/*/*.log"), key=lambda path: path.stat().st_mtime)
        said = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in jobs[-4:]]
        return "\n".join([(self.root / "main.log").read_text()[-3000:], *said])

    def job_log(self) -> str:
        """What the stages said, all of them."""
        return "".join(path.read_text() for path in sorted((self.root / "results" / "logs").glob("[!s]*/*.log")))

    def slurm_log(self, job: str) -> str:
        """What SLURM kept of a job's output."""
        return "".join(path.read_text() for path in self.root.glob(f"results/logs/slurm/rule_*/*/{job}.log"))

    def submitted(self, rule: str = "") -> list[dict[str, str]]:
        """Every job of this checkout, or of one rule of it, that SLURM still knows: id, state, nodes, comment."""
        found = []
        for line in self.cluster.ask("squeue", "-h", "-t", "all", "-o", "%i|%T|%N|%Z|%k").splitlines():
            job, state, nodes, where, comment = line.split("|", 4)
            if where == str(self.root) and comment.startswith(f"rule_{rule}"):
                found.append({"id": job, "state": state, "nodes": nodes, "comment": comment})
        return found

    def job(self, state: str = "RUNNING", rule: str = "train") -> dict[str, str]:
        """The job of a rule, once it is in that state."""

        def found() -> bool:
            self.seen = [
                j for j in self.submitted() if j["state"] == state and j["comment"].startswith(f"rule_{rule}_")
            ]
            return bool(self.seen)

        self.until(found, f"a {rule} job that is {state}")
        return self.seen[0]

    def until(self, condition, what: str, seconds: float = 500) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.main.poll() is None, f"the main process ended before there was {what}\n{self.log()}"
            assert time.monotonic() < end, f"{what}: not in {seconds} s\n{self.log()}"
            time.sleep(0.05)

    def saved(self) -> None:
        """Wait until a training run has saved a state."""
        states = lambda: list(self.root.glob("results/train/*/state/checkpoint-*/complete.json"))  # noqa: E731
        self.until(lambda: bool(states()), "a saved state")

    def pids(self, what: str) -> list[int]:
        """Python processes of this checkout's jobs whose command line holds `what`."""
        found = []
        for pid, line in self.cluster.processes().items():
            try:
                here = os.readlink(f"/proc/{pid}/cwd")
            except OSError:
                continue
            if here == str(self.root) and what in line and "python" in line.split()[0]:
                found.append(pid)
        return found

    def manifests(self, stages: tuple[str, ...] = ("train",)) -> dict[str, dict]:
        """Result -> its files with sizes and sha256."""
        return {
            f"{stage}/{path.parent.name}": json.loads(path.read_text())["files"]
            for stage in stages
            for path in sorted(self.root.glob(f"results/{stage}/*/{MANIFEST}"))
        }


@pytest.fixture(scope="session")
def cluster():
    subprocess.run([SCRIPT, "install"], check=True)
    folder = Path("/tmp") / f"scalpel_slurm_{os.getpid()}"  # unix sockets need a short path
    folder.mkdir()
    found = Cluster(folder)
    try:
        found.script("start")
        yield found
    finally:
        found.script("wipe")
        left = {pid: line for pid, line in found.processes().items() if pid != os.getppid()}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)
    assert not left, f"processes outlived the cluster: {left}"
