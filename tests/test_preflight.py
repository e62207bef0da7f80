"""Preflight: the cost recomputed by brute force, and checks against real output of nvidia-smi and SLURM."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from scalpel import preflight
from scalpel.config import Site, load
from scalpel.cost import BUSY, PEAK, WRITING, Amount, Cost, Row, Shape, estimate, kept_rows, render, shape_of
from scalpel.errors import UserError
from scalpel.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
# Seven training GPUs and one for the server, whatever the scale says.
SHARED_NODE = {"train_settings": {"ranks": 7, "engine": "zero2", "gradient_checkpointing": True, "server": {"gpus": 1}}}
SMI = "{i}, NVIDIA H100 80GB HBM3, 81559, 580.65.06, {ecc}"


def plan(root: Path, overrides: dict | None = None, scale: str = "cluster") -> Plan:
    return Plan(load({"scale": scale, "overrides": overrides or {}}, WORKFLOW), WORKFLOW, root)


def cost_of(plan: Plan) -> Cost:
    return estimate(plan, *shape_of(plan))


def row(cost: Cost, stage: str, name: str = "") -> Row:
    return next(row for row in cost.rows if (row.stage, row.name) == (stage, name))


# ---------------------------------------------------------------- the model's size


def test_parameters_of_the_papers_model(tmp_path):
    shape, _ = shape_of(plan(tmp_path))
    assert shape.parameters == pytest.approx(7.30e9, rel=0.01)

    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    with torch.device("meta"):  # the architecture itself, without memory
        model = Olmo2ForCausalLM(
            Olmo2Config(
                vocab_size=100352, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                num_attention_heads=32, tie_word_embeddings=False,
            )
        )  # fmt: skip
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "trainable",
    [
        {"only": (), "freeze_mlp_layers": (), "also_lm_head": False},
        {"only": ("q_proj", "k_proj"), "freeze_mlp_layers": (), "also_lm_head": True},
        {"only": (), "freeze_mlp_layers": (1,), "also_lm_head": False},
    ],
)
def test_parameters_of_a_saved_model_are_those_of_its_tensors(tiny_base, trainable):
    from scalpel.config import Trainable
    from scalpel.methods.base import is_trainable

    shape = Shape.of_config(json.loads((tiny_base / "config.json").read_text()))
    with safe_open(tiny_base / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118 (no iterator)
    assert shape.parameters == sum(sizes.values())
    chosen = Trainable(**trainable)
    assert shape.trained(trainable) == sum(n for name, n in sizes.items() if is_trainable(name, chosen))


def test_an_unknown_model_is_not_guessed(tmp_path):
    other = plan(tmp_path, {"model": {"kind": "hub", "repo": "someone/Some-8B", "revision": "0" * 40}})
    with pytest.raises(UserError, match="make fetch"):
        shape_of(other)
    fetched = tmp_path / next(s for s in other.steps.values() if s.name == "model").directory / "files"
    fetched.mkdir(parents=True)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    (fetched / "config.json").write_text(json.dumps(sizes | {"vocab_size": 10, "tie_word_embeddings": True}))
    assert shape_of(other)[0].parameters == 10 * 8 + 2 * (4 * 64 + 3 * 128 + 2 * 8) + 8


# ---------------------------------------------------------------- hours, by brute force


def test_sft_hours_by_brute_force(tmp_path):
    """Step by step and sequence by sequence, every multiplication of forward, recomputation and backward."""
    p = plan(tmp_path, SHARED_NODE)
    n, flops, left = 7_298_617_344, 0, 69_132
    while left:
        for _ in range(min(448, left)):
            forward = 2 * n * 2048
            flops += forward + forward + 2 * forward  # forward, again for the checkpointing, backward
        left -= min(448, left)
    seconds = flops / (7 * PEAK * BUSY)
    found = row(cost_of(p), "train", "sft_1ep")
    assert found.gpu_hours == pytest.approx(seconds / 3600 * 8)  # the server's GPU is held as well
    assert found.kept.value == 20 * n * 2
    assert found.running.value == 3 * 16 * n
    assert found.reserved == p.resources_of_stage("train").runtime / 60 * 8


def test_grpo_hours_by_brute_force(tmp_path):
    p = plan(tmp_path, SHARED_NODE)
    n, writing, training = 7_298_617_344, 0, 0
    for _ in range(571):
        for _ in range(16 * 28):
            writing += 2 * n * 750
            training += (2 + 2 + 4) * n * (150 + 750)
    seconds = writing / (1 * PEAK * WRITING) + training / (7 * PEAK * BUSY)
    assert row(cost_of(p), "train", "grpo").gpu_hours == pytest.approx(seconds / 3600 * 8)


def test_frozen_weights_need_no_gradient_of_their_own(tmp_path):
    cost = cost_of(plan(tmp_path, SHARED_NODE))
    whole, part = row(cost, "train", "sft_3ep"), row(cost, "train", "sft_qk_only")
    n, trained = 7_298_617_344, 32 * 2 * 4096 * 4096
    assert part.gpu_hours / whole.gpu_hours == pytest.approx((6 * n + 2 * trained) / (8 * n))


def test_evaluation_and_kl_by_brute_force(tmp_path):
    p = plan(tmp_path, {"evaluation": {"tasks": {"mmlu": {"limit": 100}}}} | SHARED_NODE)
    cost, n = cost_of(p), 7_298_617_344
    read = 30 * 183 + 500 * 150 + 1319 * (80 + 6 * 159) + 198 * 280 + 100 * (80 + 6 * 101)
    read += 12032 * (80 + 6 * 174) + 541 * 126
    written = (30 + 500 + 1319 + 198 + 541) * 2048
    one = (2 * n * read / (PEAK * BUSY) + 2 * n * written / (PEAK * WRITING)) / 3600
    found = row(cost, "evaluate")
    shards = p.config.scale.evaluation_shards
    assert found.jobs == 1 + 6 * shards
    assert found.gpu_hours == pytest.approx((1 + 6 * 20) * one)
    assert found.longest == pytest.approx(20 / shards * one)
    assert row(cost, "kl").gpu_hours == pytest.approx(6 * 21 * 500 * 355 * 2 * n / (67e12 * BUSY) / 3600)


@pytest.mark.parametrize("scale", ["laptop", "gpu", "cluster"])
def test_every_printed_number_follows_from_its_printed_formula(tmp_path, scale):
    text = render(cost_of(plan(tmp_path, SHARED_NODE if scale == "cluster" else None, scale)))
    arithmetic = text.split("Arithmetic of each row\n")[1]
    lines = re.sub(r"\n {4}", " ", arithmetic).splitlines()  # wrapped lines joined again
    checked = 0
    for line in lines:
        for formula, result in re.findall(r"(?:= |read |written )([-+x/(). \de]+) = ([\d.e]+)", line):
            assert eval(formula.replace("x", "*")) == pytest.approx(float(result), rel=2e-4, abs=1e-3), line
            checked += 1
    assert checked >= (25 if scale != "laptop" else 8)


def test_totals_add_up(tmp_path):
    cost = cost_of(plan(tmp_path))
    assert sum(row.jobs for row in cost.rows) == len(plan(tmp_path).steps)
    assert cost.peak > cost.least > cost.kept > 6 * 20 * 2 * cost.parameters
    total = next(line for line in render(cost).splitlines() if line.startswith("total"))
    assert f"{cost.gpu_hours:,.1f}" in total and f"{cost.reserved:,.0f}" in total


def test_a_finished_data_result_is_exact_and_finished_steps_cost_nothing(tmp_path):
    p = plan(tmp_path)
    before = row(cost_of(p), "train", "sft_1ep")
    data = tmp_path / p.data.directory
    data.mkdir(parents=True)
    pq.write_table(pa.table({"tokens": [1000, 3000, 5000], "prompt_tokens": [100, 100, 130]}), data / "kept.parquet")
    (data / "manifest.json").write_text("{}")
    rows = kept_rows(p)
    assert (rows.count, rows.tokens, rows.prompt_tokens) == (3, 3000, 110)
    cost = cost_of(p)
    assert row(cost, "train", "sft_1ep").hours.value / before.hours.value == pytest.approx(9000 / (69_132 * 2048))
    assert cost.finished == 1 and all(r.stage != "data" for r in cost.rows)
    for step in p.steps.values():
        (tmp_path / step.directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / step.directory / "manifest.json").write_text("{}")
    assert not cost_of(p).rows
    assert "Nothing to pay for" in render(cost_of(p))


# ---------------------------------------------------------------- packages, disk, network


def test_pins_of_a_lock():
    hashed = "a==1.0 \\\n    --hash=sha256:00\n"
    lock = hashed + "b[x]==2 ; sys_platform == 'emscripten' \\\nc.d==3+cpu ; python_version > '3' \\\n"
    assert preflight.read_pins(lock) == {"a": "1.0", "c.d": "3+cpu"}
    assert len(preflight.read_pins((ROOT / "envs" / "laptop.lock").read_text())) > 100


def test_packages_that_differ_are_named(tmp_path):
    (tmp_path / "laptop.lock").write_text("pydantic==0.0.1 \\\n")
    finding = preflight.environment(False, tmp_path)
    assert finding.level == "warning" and "pydantic" in finding.sentence and "0.0.1" in finding.sentence
    (tmp_path / "gpu.lock").write_text("".join(f"absent-{i}==1\n" for i in range(9)))
    finding = preflight.environment(True, tmp_path)
    assert finding.level == "error" and "9 of its 9" in finding.sentence and "and 3 more" in finding.sentence


def test_a_disk_that_is_too_small(tmp_path):
    def cost(kept: float, running: float) -> Cost:
        rows = [
            Row("train", name, 1, 0, None, 0.0, 1.0, Amount.of(kept), Amount.of(running), 10)
            for name in ("a", "b", "c")
        ]
        return Cost(1, rows, [], [], 0)

    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert [f.level for f in preflight.disk(tmp_path, cost(1, 1))] == ["ok", "ok"]
    assert next(preflight.disk(tmp_path, cost(1, free / 2))).level == "warning"
    too_small = next(preflight.disk(tmp_path, cost(free, 1)))
    assert too_small.level == "error" and "results/" in too_small.sentence


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
        reached = preflight.reachable(p, {"HF_ENDPOINT": endpoint})
        broken = preflight.reachable(p, {"HF_ENDPOINT": f"{endpoint}/503"})
        server.shutdown()
    assert reached.level == "ok" and "make fetch" in reached.sentence
    assert broken.level == "error" and "503" in broken.sentence
    gone = preflight.reachable(p, {"HF_ENDPOINT": endpoint})
    assert gone.level == "error" and endpoint in gone.sentence and "allenai" not in endpoint
    offline = preflight.reachable(p, {"HF_HUB_OFFLINE": "1"})
    assert offline.level == "error" and "HF_HUB_OFFLINE" in offline.sentence
    assert preflight.reachable(plan(tmp_path, scale="laptop"), {"HF_HUB_OFFLINE": "1"}).level == "ok"


def test_layout_of_a_training_job(tmp_path):
    levels = lambda ranks: [  # noqa: E731
        f.level
        for f in preflight.layout(plan(tmp_path, {"train_settings": {"ranks": ranks, "engine": "zero2", "server": {}}}))
    ]
    assert (levels(7), levels(8), levels(3)) == ([], ["error"], ["warning"])


def test_jobs_longer_than_their_limit(tmp_path):
    overrides = SHARED_NODE | {"resources": {"train": {"runtime": 60}, "evaluate": {"runtime": 30}}}
    sentences = [f.sentence for f in preflight.time_limits(cost_of(plan(tmp_path, overrides)))]
    assert any("train grpo" in s and "queued again" in s for s in sentences)
    assert any("evaluate" in s and "evaluation_shards" in s for s in sentences)
    assert not any("sft_matched" in s for s in sentences)


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
    assert preflight.health(0) == []
    assert "nvidia-smi is not on PATH of node" in preflight.health(8)[0]
    programs("nvidia-smi", smi(*[0] * 8))
    assert preflight.health(8) == []
    programs("nvidia-smi", smi("[N/A]", "[N/A]"))
    assert preflight.nvidia_smi()[0][1] == ("1", "NVIDIA H100 80GB HBM3", 81559, "580.65.06", None)
    programs("nvidia-smi", smi(*[0] * 7))
    assert "shows 7 GPUs, not the 8" in preflight.health(8)[0]
    programs("nvidia-smi", smi(0, 3))
    assert "GPU 1 of node" in preflight.health(2)[0] and "3 uncorrectable" in preflight.health(2)[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert preflight.health(1) == []


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
    assert any(words in problem for problem in preflight.health(8))
    finding = preflight.gpus(8)
    assert finding.level == "error" and words in finding.sentence


def test_gpus_of_this_node(programs):
    assert preflight.gpus(8).level == "ok"  # nothing to look at: the jobs do
    programs("nvidia-smi", smi(0, 0).replace("580.65.06", "470.82.01"))
    old = preflight.gpus(2)
    assert old.level == "error" and "470.82.01" in old.sentence
    programs("nvidia-smi", smi(0, 1))
    assert preflight.gpus(2).level == "error"


def test_products_of_matrices():
    assert preflight.product_problems(["cpu", "cpu"]) == []
    assert "meta" in preflight.product_problems(["meta"])[0]  # a device that gives no numbers


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
    sentences = preflight.site_refusals(plan(tmp_path), Site(gpu_model="h100"))
    assert any(field in sentence for sentence in sentences)
    assert all(words.splitlines()[-1] in sentence for sentence in sentences)


def test_what_sbatch_is_asked(programs, tmp_path):
    log = tmp_path / "asked"
    programs(
        "sbatch", f'echo "$@" >> {log}; echo "sbatch: Job 1 to start at 2026-11-21T07:35:03 using 2 processors" >&2'
    )
    site = Site(account="lab", partition="cpu", gpu_partition="gpu", qos="long", gpu_model="h100", constraint="nvlink")
    assert preflight.site_refusals(plan(tmp_path), site) == []
    asked = log.read_text().splitlines()
    shapes = preflight.job_shapes(plan(tmp_path))
    assert len(asked) == len(set(asked)) == len(shapes)
    assert not any("fetch" in stages for stages in shapes.values())  # it runs here, not as a job
    assert all("--test-only" in line and "--account=lab" in line and "--qos=long" in line for line in asked)
    train = next(line for line in asked if "--gpus=h100:8" in line)
    assert "--partition=gpu" in train and "--constraint=nvlink" in train and "--time=1440" in train
    assert "--nodes=1" in train and train.endswith("--wrap true")
    assert all("--partition=cpu" in line and "constraint" not in line for line in asked if "gpus" not in line)


def test_only_the_jobs_that_are_refused_are_named(programs, tmp_path):
    programs(
        "sbatch",
        'case "$*" in *--gpus=h100:8*) echo "Requested node configuration is not available" >&2; exit 1;; esac',
    )
    (sentence,) = preflight.site_refusals(plan(tmp_path), Site(gpu_model="h100"))
    assert "jobs of train (8 GPUs" in sentence and "evaluate" not in sentence


def test_a_time_limit_above_the_partitions_is_found(programs, tmp_path):
    programs("sbatch", "exit 0")
    programs("sinfo", "echo 'cpu*|infinite'; echo 'gpu|12:00:00'")
    (sentence,) = preflight.site_refusals(plan(tmp_path), Site(gpu_partition="gpu"))
    assert "train" in sentence and "`runtime`" in sentence and "720 min" in sentence
    assert preflight.site_refusals(plan(tmp_path), Site()) == []


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
    absent = "overrides: {source: {kind: parquet, path: absent.parquet}}"
    for words, config, expected in (
        (["--scale", "clustr"], "", "did you mean 'cluster'"),
        ([], absent, "absent.parquet does not exist"),
    ):
        done = run(tmp_path, *words, config=config)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert re.search(r"^error +plan ", done.stdout, re.MULTILINE)
        assert expected in " ".join(done.stdout.split())
