"""kill -9 on a laptop, again and again: the next start works at once, and the end is that of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scalpel.artifact.files import STATE
from scalpel.methods.state import COMPLETE
from tests.test_workflow import ROOT, snakemake

pytestmark = pytest.mark.campaign
KILLS = 20
LONGEST_SECONDS = 16.0  # from the start of a first job to the kill
PLANNING, TRAINING = 0, 2  # of four kills, one comes while Snakemake still plans, one when a run has saved a new state


def untimed(path: Path) -> bytes:
    """A file's bytes; a page's without what its results cost, and when and in how long they were made."""
    content = path.read_bytes()
    return content.partition(b'<h2 id="cost">')[0] if path.name == "index.html" else content


class Lab:
    """A folder with the study of tests/slurm, two runs and two figures, at laptop scale."""

    def __init__(self, root: Path):
        self.root, self.results = root, root / "results"
        root.mkdir()
        shutil.copytree(ROOT / "profiles", root / "profiles")
        config = yaml.safe_load((ROOT / "tests" / "slurm" / "config.yaml").read_text())
        del config["overrides"]["resources"]
        (root / "config.yaml").write_text(yaml.safe_dump(config | {"studies": ["faults.yaml"]}))
        shutil.copy(ROOT / "tests" / "slurm" / "study.yaml", root / "faults.yaml")

    def start(self) -> subprocess.Popen:
        """Snakemake in a process group of its own, as a terminal gives it."""
        command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "2"]
        more = {"cwd": self.root, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "start_new_session": True}
        with open(self.root / "main.log", "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, **more)

    def log(self) -> str:
        path = self.root / "main.log"
        return path.read_text() if path.exists() else ""

    def files(self) -> dict[str, bytes]:
        """All that results/ holds but logs and times: of provenance.json, and of the page's record, which hashes the
        page, only that they are there; the page without its sections on what its results cost and when they were made.
        """
        found = {path.relative_to(self.results).as_posix(): path for path in self.results.rglob("*") if path.is_file()}
        return {
            name: b"" if path.name in ("provenance.json", "index.json") else untimed(path)
            for name, path in found.items() if not name.startswith("logs/")
        }  # fmt: skip

    def forget(self, run: str) -> None:
        """Take a run away with all that was made of it."""
        for stage in ("train", "evaluate", "kl", "weight_change"):
            for directory in self.results.glob(f"{stage}/{run}[.-]*"):
                shutil.rmtree(directory)
        for folder in self.results.glob("*/faults"):
            shutil.rmtree(folder)

    def states(self) -> set[Path]:
        """The complete states that training runs resume from."""
        return set(self.results.glob(f"train/*/{STATE}/checkpoint-*/{COMPLETE}"))

    def run(self, program: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", f"scripts.{program}"]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("kills") / "undisturbed")
    snakemake("--cores", "2", cwd=lab.root)
    return lab


def test_twenty_kills_in_a_row_leave_what_an_undisturbed_run_leaves(undisturbed, tmp_path):
    lab, random_ = Lab(tmp_path / "lab"), random.Random(8)
    kills = {"all of its processes": 0, "Snakemake alone": 0}
    while sum(kills.values()) < KILLS:
        number, whom = sum(kills.values()), list(kills)[sum(kills.values()) % 2]
        said, states, kind = len(lab.log()), lab.states(), number % 4
        main = lab.start()
        while kind != PLANNING and "Select jobs" not in lab.log()[said:] and main.poll() is None:
            time.sleep(0.1)
        while kind == TRAINING and lab.states() <= states and main.poll() is None:
            time.sleep(0.01)
        try:
            assert main.wait(random_.uniform(0, 1 if kind == TRAINING else LONGEST_SECONDS)) == 0, lab.log()[-4000:]
            lab.forget(random_.choice(("grpo", "sft_1ep")))  # it was done before the kill
            continue
        except subprocess.TimeoutExpired:
            pass
        if whom == "Snakemake alone":
            main.kill()  # its jobs run on, and the next start waits for them
        else:
            os.killpg(main.pid, signal.SIGKILL)
        main.wait()
        kills[whom] += 1
    assert lab.start().wait(900) == 0, lab.log()[-4000:]
    said = lab.log()
    for words in ("LockException", "Traceback", "error: ", "Error in rule"):
        assert words not in said, said[said.index(words) - 2000 :][:4000]
    mine, theirs = lab.files(), undisturbed.files()
    assert set(mine) == set(theirs), set(mine) ^ set(theirs)
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert lab.run("verify").returncode == 0
    resumed, waited = said.count("resuming from step"), said.count("waiting for it")
    print(f"{KILLS} kills ({kills}): {resumed} times resumed, {waited} jobs of killed starts waited for, "
          f"{len(mine)} files equal, none stray")  # fmt: skip


def test_a_second_terminal_and_the_first_start_after_a_kill(undisturbed, tmp_path):
    lab = Lab(tmp_path / "lab")
    shutil.copytree(undisturbed.results, lab.results)
    lab.forget("sft_1ep")
    main = lab.start()
    end = time.monotonic() + 120
    while not list(lab.results.glob("train/sft_1ep-*/lease.*.json")):
        assert main.poll() is None and time.monotonic() < end, lab.log()
        time.sleep(0.05)
    os.killpg(main.pid, signal.SIGSTOP)  # so that the run is not over before it is looked at
    assert "running   results/train/sft_1ep-" in lab.run("status").stdout
    assert lab.run("verify").returncode == 0
    os.killpg(main.pid, signal.SIGCONT)
    figure = "results/figures/faults/grpo_rewards.pdf"
    snakemake("--cores", "1", figure, cwd=lab.root)
    assert (lab.root / figure).with_suffix(".json").exists() and main.poll() is None
    os.killpg(main.pid, signal.SIGKILL)
    main.wait()
    snakemake("--cores", "2", cwd=lab.root)
    assert lab.files() == undisturbed.files()
