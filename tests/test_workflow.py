"""The DAG by Snakemake itself: dry-runs of every scale, and one complete run at a still smaller scale."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import hostile_path

ROOT = Path(__file__).resolve().parent.parent
RUNS = ("grpo", "sft_1ep", "sft_3ep", "sft_matched", "sft_grpo_rate_1ep", "sft_own_all")
FIGURES = (
    "grpo_rewards",
    "sft_loss",
    "benchmarks",
    "frontier",
    "kl",
    "norms_grpo",
    "norms_sft",
    "norms_course",
    "controls",
)
TABLES = ("scores", "kl_final", "norms", "equal_budget")


def snakemake(*arguments, cwd=ROOT, check=True, python=sys.executable, checkout=ROOT) -> str:
    command = [python, "-m", "snakemake", "-s", str(checkout / "Snakefile"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output[-4000:]
    return output if check else f"exit status {done.returncode}\n{output}"


def planned(output: str) -> dict[str, int]:
    """Jobs by rule of a dry-run."""
    table = output[output.index("Job stats:") :].split("\n\n")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE) if rule != "total"}


@pytest.mark.parametrize(
    ("scale", "shards", "fetches", "questions", "audits"),
    [("laptop", 1, 0, 6, 2), ("gpu", 2, 10, 5, 3), ("cluster", 4, 12, 7, 3)],
)
def test_dry_run_of_every_scale(scale, shards, fetches, questions, audits, tmp_path):
    shutil.copy(ROOT / "config.yaml", tmp_path / "config.yaml")
    jobs = planned(snakemake("-n", "--config", f"scale={scale}", cwd=tmp_path))
    assert jobs == {
        **dict.fromkeys(("all", "base", "data", "generate", "report"), 1),
        "order": 2,
        **({"fetch": fetches} if fetches else {"toy": 1}),
        **dict.fromkeys(("train", "kl", "weight_change"), len(RUNS)),
        "questions": questions,
        "audit": audits,
        "evaluate": len(RUNS) * shards + 1,
        "figure": len(FIGURES),
        "table": len(TABLES),
    }
    assert not list(tmp_path.glob("results/*/*/*")), "a dry-run makes no result"


def test_dry_run_of_the_slurm_profile(tmp_path):
    """The literal `snakemake --profile slurm -n` plans the cluster scale where there is no SLURM."""
    for name in ("config.yaml", "slurm", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    output = snakemake("-n", "--profile", "slurm", cwd=tmp_path)
    jobs = planned(output)
    assert jobs["fetch"] == 12 and jobs["evaluate"] == 4 * len(RUNS) + 1
    assert "nodes=1, gpu=8, gpu_model=h100" in output and "runtime=1440" in output


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("scale=laptob", "did you mean 'laptop'?"),
        ("scale=[1]", "scale: input should be a valid string"),
        ("scal=x", "'scal'"),
    ],
)
def test_bad_config_is_one_sentence(config, sentence, tmp_path):
    shutil.copy(ROOT / "config.yaml", tmp_path / "config.yaml")
    output = snakemake("-n", "--config", config, cwd=tmp_path, check=False)
    assert sentence in output and "exit status 0" not in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("results/figures/scalpel_vs_hammer/kll.pdf", "did you mean 'results/figures/scalpel_vs_hammer/kl.pdf'?"),
        ("results/train/grop-{grpo}/manifest.json", "did you mean 'results/train/grpo-{grpo}/manifest.json'?"),
        ("grpo", "did you mean 'results/train/grpo-{grpo}/manifest.json'?"),
        ("--until=trian", "trian is no rule and no result of this plan; did you mean 'train'?"),
        ("--allowed-rules=trian", "--allowed-rules: trian is no rule; did you mean 'train'?"),
        ("--forcerun=results/train/grop", "did you mean 'results/train/grpo-{grpo}/manifest.json'?"),
        ("results/figures/scalpel_vs_hammer/kl.pdf", None),
    ],
)
def test_a_mistyped_target_gets_the_nearest_name(target, sentence, tmp_path):
    from scalpel.config.load import load
    from scalpel.plan import Plan

    shutil.copy(ROOT / "config.yaml", tmp_path / "config.yaml")
    grpo = Plan(load({}, ROOT / "workflow"), ROOT / "workflow", tmp_path).run("scalpel_vs_hammer", "grpo", 42)
    fields = {"grpo": grpo.checkpoints.digest}
    output = snakemake("-n", target.format(**fields), cwd=tmp_path, check=sentence is None)
    if sentence:
        assert sentence.format(**fields) in output and "exit status 0" not in output and "Exception" not in output


def test_the_linter_says_what_decisions_md_argues_and_nothing_else(tmp_path):
    shutil.copy(ROOT / "config.yaml", tmp_path / "config.yaml")
    said = re.findall(r"^    \* (.*):$", snakemake("--lint", cwd=tmp_path, check=False), re.MULTILINE)
    assert set(said) == {"Specify a conda environment or container for each rule."}
    assert "snakemake --lint" in (ROOT / "docs" / "decisions.md").read_text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runs: {}\nscale: laptop\nruns: {}\n", "config.yaml: key 'runs' stands there twice in line 3"),
        ("a: &a [x]\n" + "b: [" + ", ".join(["*a"] * 2000) + "]\n", "config.yaml: too many aliases in line 2"),
    ],
)
def test_yaml_that_snakemake_would_take_is_refused(text, sentence, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    output = snakemake("-n", cwd=tmp_path, check=False)
    assert sentence in output and "exit status 0" not in output


@pytest.mark.workflow
@pytest.mark.slow
def test_complete_run(tmp_path):
    """Everything, for real, and then: nothing to do, one figure alone, one run alone, and back.

    In a checkout whose path a shell would execute, and with a Python of its own there."""
    folder = hostile_path.checkout(tmp_path)
    python = hostile_path.own_python(folder)

    def go(*words: str, check: bool = True) -> str:
        return snakemake(*words, cwd=folder, check=check, python=python, checkout=folder)

    assert "make status" not in go("--cores", "2"), "no target is unknown"
    results = folder / "results"
    for figure in FIGURES:
        for kind in ("pdf", "png", "svg"):
            assert (results / "figures" / "scalpel_vs_hammer" / f"{figure}.{kind}").stat().st_size > 5000
    for table in TABLES:
        assert len((results / "tables" / "scalpel_vs_hammer" / f"{table}.csv").read_text().splitlines()) > 2
    page = (results / "report" / "scalpel_vs_hammer" / "index.html").read_text()
    assert "scaled replica" in page and page.count("data:image/png") >= len(FIGURES)

    for run in RUNS:
        (train,) = results.glob(f"train/{run}-*")
        assert not (train / "state").exists()
        steps = [item["step"] for item in json.loads((train / "checkpoints.json").read_text())]
        for stage, name in (("kl", "kl"), ("weight_change", "weight_change")):
            (made,) = results.glob(f"{stage}/{run}[.-]*")
            assert sorted(set(pq.read_table(made / f"{name}.parquet").column("step").to_pylist())) == steps
        (evaluated,) = results.glob(f"evaluate/{run}.core-*")
        scores = pq.read_table(evaluated / "scores.parquet").to_pylist()
        assert sorted({row["step"] for row in scores}) == steps
        assert {row["task"] for row in scores} == {"math_500", "gsm8k", "mmlu", "mmlu_pro", "ifeval"}
        assert all(0 <= row["value"] <= 1 for row in scores)

    before = time.monotonic()
    assert "Nothing to be done" in go("-n")
    assert time.monotonic() - before < 10

    def program(name: str) -> subprocess.CompletedProcess:
        return subprocess.run([python, "-m", f"scripts.{name}"], cwd=folder, capture_output=True, text=True)

    assert program("verify").returncode == 0
    status = program("status")
    assert status.returncode == 0 and "missing" not in status.stdout, status.stderr

    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        config.replace("  sft_matched:", "  sft_3ep: {learning_rate: 2.0e-4}\n  sft_matched:")
    )
    jobs = planned(go("-n"))
    assert jobs["train"] == jobs["evaluate"] == jobs["kl"] == jobs["weight_change"] == 1 and "base" not in jobs
    (folder / "config.yaml").write_text(config)
    assert "Nothing to be done" in go("-n")

    kl = results / "figures" / "scalpel_vs_hammer" / "kl.pdf"
    kl.unlink()
    assert planned(go("-n", str(kl.relative_to(folder)))) == {"figure": 1}

    (checkpoint,) = results.glob("train/grpo-*/checkpoints/*6/model.safetensors")
    with open(checkpoint, "r+b") as file:
        file.truncate(1000)
    damaged = program("verify")
    assert damaged.returncode == 1 and "truncated" in damaged.stdout
    shutil.rmtree(next(results.glob("weight_change/grpo-*")))
    (results / "figures" / "scalpel_vs_hammer" / "norms_grpo.pdf").unlink()
    output = go("--cores", "1", "results/figures/scalpel_vs_hammer/norms_grpo.pdf", check=False)
    assert "exit status 0" not in output and re.search(r"error: .*model\.safetensors", output)
    assert not hostile_path.executed(tmp_path)


@pytest.mark.workflow
@pytest.mark.campaign
def test_real_files(shared_data, tmp_path):
    """Real AMC/AIME problems as training rows and real MATH-500, GSM8K, MMLU, MMLU-Pro and IFEval questions."""
    config = (ROOT / "tests" / "real.yaml").read_text().replace("SHARED", str(shared_data))
    (tmp_path / "config.yaml").write_text(config)
    shutil.copy(ROOT / "tests" / "slurm" / "study.yaml", tmp_path / "two_runs.yaml")
    snakemake("--cores", "2", cwd=tmp_path)
    (data,) = tmp_path.glob("results/data/*")
    counts = dict(line.split(",")[:2] for line in (data / "drops.csv").read_text().splitlines()[1:])
    assert int(counts["read"]) == 4069 == sum(int(n) for reason, n in counts.items() if reason != "read")
    assert int(counts["duplicate"]) > 40 and int(counts["kept"]) > 500
    for evaluated in tmp_path.glob("results/evaluate/*"):
        scores = {row["task"]: row["questions"] for row in pq.read_table(evaluated / "scores.parquet").to_pylist()}
        assert scores == {"math_500": 4, "gsm8k": 4, "mmlu": 8, "mmlu_pro": 4, "ifeval": 4}
    assert (tmp_path / "results" / "report" / "two_runs" / "index.html").stat().st_size > 80_000
