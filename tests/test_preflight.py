"""Preflight: checks against real output of nvidia-smi and SLURM, each finding a sentence."""

import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from scalpel.config.load import load
from scalpel.config.scale import StageResources
from scalpel.config.site import Site
from scalpel.cost.amount import Amount
from scalpel.cost.estimate import Cost, Row, estimate
from scalpel.errors import Passing
from scalpel.launch import health
from scalpel.launch.attempts import LAST, asked
from scalpel.launch.slurm import Partition, partitions
from scalpel.plan import Plan
from scalpel.preflight import gpus, overlap, packages, slurm, supplies

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
# Seven training GPUs and one for the server, whatever the scale says.
SHARED_NODE = {"train_settings": {"ranks": 7, "engine": "zero2", "gradient_checkpointing": True, "server": {"gpus": 1}}}
SMI = "{i}, NVIDIA H100 80GB HBM3, 81559, 580.65.06, {ecc}"


def plan(root: Path, overrides: dict | None = None, scale: str = "cluster") -> Plan:
    return Plan(load({"scale": scale, "overrides": overrides or {}}, WORKFLOW), WORKFLOW, root)


# ---------------------------------------------------------------- packages, disk, network


def test_pins_of_a_lock():
    hashed = "a==1.0 \\\n    --hash=sha256:00\n"
    lock = hashed + "b[x]==2 ; sys_platform == 'emscripten' \\\nc.d==3+cpu ; python_version > '3' \\\n"
    assert packages.read_pins(lock) == {"a": "1.0", "c.d": "3+cpu"}
    assert len(packages.read_pins((ROOT / "envs" / "laptop.lock").read_text())) > 100


def test_packages_that_differ_are_named(tmp_path):
    (tmp_path / "laptop.lock").write_text("pydantic==0.0.1 \\\n")
    finding = packages.environment(False, tmp_path)
    assert finding.level == "warning" and "pydantic" in finding.sentence and "0.0.1" in finding.sentence
    (tmp_path / "gpu.lock").write_text("".join(f"absent-{i}==1\n" for i in range(9)))
    finding = packages.environment(True, tmp_path)
    assert finding.level == "error" and "9 of its 9" in finding.sentence and "and 3 more" in finding.sentence


def test_a_disk_that_is_too_small(tmp_path):
    def cost(kept: float, running: float) -> Cost:
        rows = [
            Row("train", name, 1, 0, None, 0.0, 1.0, Amount.of(kept), Amount.of(running), 10)
            for name in ("a", "b", "c")
        ]
        return Cost(rows, [], [], 0)

    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert [f.level for f in supplies.disk(tmp_path, cost(1, 1))] == ["ok", "ok"]
    assert next(supplies.disk(tmp_path, cost(1, free / 2))).level == "warning"
    too_small = next(supplies.disk(tmp_path, cost(free, 1)))
    assert too_small.level == "error" and "results/" in too_small.sentence


def test_a_dataset_without_a_commit_is_an_error_before_anything_is_fetched(tmp_path):
    config = load({"scale": "cluster", "studies": ["sft_then_rl"]}, WORKFLOW)
    found = supplies.reachable(Plan(config, WORKFLOW, tmp_path), {})
    assert found.level == "error" and "No commit of Elliott/Openr1-Math-46k-8192 is named" in found.sentence
    assert "openr1_math_46k: {source: {revision:" in found.sentence


def test_the_hub(tmp_path):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(int(self.path.strip("/") or 200))
            self.end_headers()

        def log_message(self, *_):
            pass

    p = plan(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        reached = supplies.reachable(p, {"HF_ENDPOINT": endpoint})
        broken = supplies.reachable(p, {"HF_ENDPOINT": f"{endpoint}/503"})
        server.shutdown()
    assert reached.level == "ok" and "make fetch" in reached.sentence
    assert broken.level == "error" and "503" in broken.sentence
    gone = supplies.reachable(p, {"HF_ENDPOINT": endpoint})
    assert gone.level == "error" and endpoint in gone.sentence and "allenai" not in endpoint
    offline = supplies.reachable(p, {"HF_HUB_OFFLINE": "1"})
    assert offline.level == "error" and "HF_HUB_OFFLINE" in offline.sentence
    assert supplies.reachable(plan(tmp_path, scale="laptop"), {"HF_HUB_OFFLINE": "1"}).level == "ok"


def test_layout_of_a_training_job(tmp_path):
    levels = lambda ranks: [  # noqa: E731
        f.level
        for f in gpus.layout(plan(tmp_path, {"train_settings": {"ranks": ranks, "engine": "zero2", "server": {}}}))
    ]
    assert (levels(7), levels(8), levels(4)) == ([], ["error"], ["warning"])


def test_jobs_longer_than_their_limit(tmp_path):
    overrides = SHARED_NODE | {"resources": {"train": {"runtime": 60}, "evaluate": {"runtime": 30}}}
    sentences = [f.sentence for f in supplies.time_limits(estimate(plan(tmp_path, overrides)))]
    assert any("train grpo" in s and "queued again" in s for s in sentences)
    assert any("evaluate" in s and "evaluation_shards" in s for s in sentences)
    assert not any("sft_matched" in s for s in sentences)


def test_sets_that_are_asked_and_not_guarded_against_are_named(tmp_path):
    assert not list(overlap(plan(tmp_path)))
    (found,) = overlap(plan(tmp_path, {"guard": ["math_500"]}))
    assert found.level == "warning" and "gsm8k" in found.sentence and "math_500" not in found.sentence


# ---------------------------------------------------------------- GPUs


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Put shell scripts on PATH, and nothing else: programs("sbatch", "echo hello")."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def add(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    return add


def smi(*ecc) -> str:
    return "\n".join(f"echo '{SMI.format(i=i, ecc=count)}'" for i, count in enumerate(ecc))


def test_health(programs, monkeypatch):
    assert health.health(0) == []
    assert "nvidia-smi is not on PATH of node" in health.health(8)[0]
    programs("nvidia-smi", smi(*[0] * 8))
    assert health.health(8) == []
    programs("nvidia-smi", smi("[N/A]", "[N/A]"))
    assert health.nvidia_smi()[0][1] == ("1", "NVIDIA H100 80GB HBM3", 81559, "580.65.06", None)
    programs("nvidia-smi", smi(*[0] * 7))
    assert "shows 7 GPUs, not the 8" in health.health(8)[0]
    programs("nvidia-smi", smi(0, 3))
    assert "GPU 1 of node" in health.health(2)[0] and "3 uncorrectable" in health.health(2)[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert health.health(1) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
        (6, "No devices were found"),
        (15, "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost. Reboot the system."),
    ],
)
def test_nvidia_smi_that_fails(programs, status, words):
    programs("nvidia-smi", f'echo "{words}"; exit {status}')
    assert any(words in problem for problem in health.health(8))
    finding = gpus.gpus_of_this_node(8)
    assert finding.level == "error" and words in finding.sentence


def test_all_nodes_of_a_job_are_looked_at(programs, tmp_path, monkeypatch):
    """The first one's GPUs work; of the others one has memory errors, and one starts no process."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setattr(health, "health", lambda gpus: [])
    programs("squeue", "echo n[1-3]")
    programs("scontrol", "echo n1; echo n2; echo n3")
    programs("nvidia-smi", smi(0, 3))
    programs(
        "srun",
        'while [ "${1#--}" != "$1" ]; do case "$1" in --nodelist=*) node="${1#*=}";; esac; shift; done\n'
        '[ "$node" = n3 ] && { echo "srun: error: Node n3 is down" >&2; exit 1; }\n'
        'exec "$@"',
    )
    with pytest.raises(Passing, match=r"node n2: GPU 1 of node .* counts 3 uncorrectable memory errors"):
        health.refuse_unhealthy_nodes(2, tmp_path / "results")
    marks = tmp_path / "results" / health.UNHEALTHY
    assert sorted(path.name for path in marks.iterdir()) == ["n2", "n3"]
    assert "Node n3 is down" in (marks / "n3").read_text()


def test_gpus_of_this_node(programs):
    assert gpus.gpus_of_this_node(8).level == "ok"  # nothing to look at: the jobs do
    programs("nvidia-smi", smi(0, 0).replace("580.65.06", "470.82.01"))
    old = gpus.gpus_of_this_node(2)
    assert old.level == "error" and "470.82.01" in old.sentence
    programs("nvidia-smi", smi(0, 1))
    assert gpus.gpus_of_this_node(2).level == "error"


def test_products_of_matrices():
    assert health.product_problems(["cpu", "cpu"]) == []
    assert "meta" in health.product_problems(["meta"])[0]  # a device that gives no numbers


# ---------------------------------------------------------------- SLURM

# What SLURM 22.05 prints; the last two are slurm_strerror's words of newer versions and other settings.
WORDS = [
    ("allocation failure: Invalid account or account/partition combination specified", "`account`"),
    (
        "sbatch: error: invalid partition specified: x\nallocation failure: Invalid partition name specified",
        "`partition`",
    ),
    ("allocation failure: Requested node configuration is not available", "`gpu_model`"),
    ("allocation failure: Invalid feature specification", "`constraint`"),
    ("allocation failure: Invalid qos specification", "`qos`"),
    ("allocation failure: Invalid generic resource (gres) specification", "`gpu_model`"),
    ("allocation failure: Requested time limit is invalid (missing or exceeds some limit)", "`runtime`"),
    ("sbatch: fatal: Could not establish a configuration source", "SLURM_CONF"),
    ("allocation failure: something new", "slurm/site.yaml"),
]


@pytest.mark.parametrize(("words", "field"), WORDS)
def test_refusals_name_the_field(programs, tmp_path, words, field):
    programs("sbatch", f"printf '%s\\n' \"{words}\" >&2; exit 1")
    sentences = slurm.site_refusals(plan(tmp_path), Site(gpu_model="h100"))
    assert any(field in sentence for sentence in sentences)
    assert all(words.splitlines()[-1] in sentence for sentence in sentences)


def test_what_sbatch_is_asked(programs, tmp_path):
    log = tmp_path / "asked"
    programs(
        "sbatch", f'echo "$@" >> {log}; echo "sbatch: Job 1 to start at 2026-11-21T07:35:03 using 2 processors" >&2'
    )
    site = Site(account="lab", partition="cpu", gpu_partition="gpu", qos="long", gpu_model="h100", constraint="nvlink")
    assert slurm.site_refusals(plan(tmp_path), site) == []
    asked = log.read_text().splitlines()
    shapes = slurm.job_shapes(plan(tmp_path), site)
    assert len(asked) == len(set(asked)) == len(shapes)
    assert not any("fetch" in stages for stages in shapes.values())  # it runs here, not as a job
    assert all("--test-only" in line and "--account=lab" in line and "--qos=long" in line for line in asked)
    train = next(line for line in asked if "--gpus=h100:8" in line and "--time=1440" in line)
    assert "--partition=gpu" in train and "--constraint=nvlink" in train
    assert "--nodes=1" in train and train.endswith("--wrap true")
    assert all("--partition=cpu" in line and "constraint" not in line for line in asked if "gpus" not in line)


def test_only_the_jobs_that_are_refused_are_named(programs, tmp_path):
    programs(
        "sbatch",
        'case "$*" in *--gpus=h100:8*) echo "Requested node configuration is not available" >&2; exit 1;; esac',
    )
    sentences = slurm.site_refusals(plan(tmp_path), Site(gpu_model="h100"))
    assert ["jobs of audit (8 GPUs" in sentences[0], "jobs of train (8 GPUs" in sentences[1]] == [True, True]
    assert not any("evaluate" in sentence for sentence in sentences)


def test_a_time_limit_above_the_partitions_is_found(programs, tmp_path):
    programs("sbatch", "exit 0")
    programs("sinfo", "echo 'cpu*|infinite'; echo 'gpu|12:00:00'")
    sentence = next(one for one in slurm.site_refusals(plan(tmp_path), Site(gpu_partition="gpu")) if "of train" in one)
    assert "`runtime`" in sentence and "720 min" in sentence
    assert slurm.site_refusals(plan(tmp_path), Site()) == []


def test_a_job_that_is_tried_again_asks_for_no_more_than_there_is():
    train = StageResources(mem_mb=800_000, runtime=1440, gpus=8)
    kl = StageResources(mem_mb=64_000, runtime=240, gpus=1)
    there = {"gpu": Partition("gpu", 24 * 3600.0, 100_000), "": Partition("cpu")}
    gpu = Site(gpu_partition="gpu")

    def of(given, stage, attempt, site=gpu, partitions=there):
        found = asked(given, stage, attempt, site, partitions)
        assert (found.gpus, found.threads) == (given.gpus, given.threads)
        return found.runtime, found.mem_mb

    assert [of(train, "train", n) for n in (1, 2, LAST)] == [(1440, 800_000)] * 3
    assert [of(kl, "kl", n) for n in (1, 2, LAST)] == [(240, 64_000), (360, 96_000), (600, 100_000)]
    assert of(kl, "kl", LAST, Site()) == of(kl, "kl", LAST, gpu, {}) == (600, 160_000)  # nothing is known
    assert of(train, "train", LAST, gpu, {}) == (3600, 800_000)
    assert of(kl, "kl", LAST, Site(gpu_partition="gpu", max_runtime=300, max_mem_mb=70_000)) == (300, 70_000)
    assert of(kl, "kl", 1, Site(max_runtime=60), {}) == (60, 64_000)


def test_the_profile_gives_as_many_attempts():
    profile = yaml.safe_load((ROOT / "slurm" / "profile.v9+.yaml").read_text())
    assert profile["retries"] + 1 == LAST


def test_partitions_as_sinfo_tells_them(programs):
    assert partitions() == {}
    programs("sinfo", "echo 'cpu*|infinite|64000'; echo 'gpu|1-00:00:00|1000000'; echo 'gpu|1-00:00:00|2000000'")
    cpu = Partition("cpu", None, 64_000)
    assert partitions() == {"": cpu, "cpu": cpu, "gpu": Partition("gpu", 86400.0, 2_000_000)}


def test_the_last_attempt_is_asked_about_too(programs, tmp_path):
    """A quality of service that ends jobs after a day and a half takes the first attempt, and no longer ones."""
    log = tmp_path / "asked"
    programs(
        "sbatch",
        f'echo "$@" >> {log}; for word; do case "$word" in --time=*) time="${{word#*=}}";; esac; done\n'
        '[ "$time" -le 2160 ] || { echo "Requested time limit is invalid (missing or exceeds some limit)"; exit 1; }',
    )
    p, site = plan(tmp_path), Site(gpu_model="h100")
    assert slurm.site_refusals(p, site) == []
    first = log.read_text().splitlines()
    sentence = next(one for one in slurm.site_refusals(p, site, LAST) if "jobs of train" in one)
    assert "3600 min) when they are tried for the last time" in sentence
    assert "`max_runtime` and `max_mem_mb` of slurm/site.yaml" in sentence
    assert not set(first) & set(log.read_text().splitlines()[len(first) :])
    assert slurm.site_refusals(p, Site(gpu_model="h100", max_runtime=1440), LAST) == []


# ---------------------------------------------------------------- the program


def run(tmp_path: Path, *words: str, config: str = "") -> subprocess.CompletedProcess:
    if config:
        (tmp_path / "config.yaml").write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "scripts.preflight", *words],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_program(tmp_path):
    done = run(tmp_path, "--scale", "cluster", "--no-slurm")
    assert done.returncode == 1, done.stderr  # HF_HUB_OFFLINE is set in the tests
    assert re.search(r"^error +model, data +HF_HUB_OFFLINE is set", done.stdout, re.MULTILINE)
    assert "GPU-hours" in done.stdout and not done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing is written
    laptop = run(tmp_path, "--scale", "laptop")
    assert laptop.returncode == int("\nerror" in laptop.stdout)
    assert "On disk" in laptop.stdout and "GPU-hours" not in laptop.stdout


def test_mistakes_are_lines_not_tracebacks(tmp_path):
    absent = "overrides: {datasets: {toy: {source: {kind: parquet, path: absent.parquet}}}}"
    for words, config, expected in (
        (["--scale", "clustr"], "", "did you mean 'cluster'"),
        ([], absent, "absent.parquet does not exist"),
    ):
        done = run(tmp_path, *words, config=config)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert re.search(r"^error +plan ", done.stdout, re.MULTILINE)
        assert expected in " ".join(done.stdout.split())
