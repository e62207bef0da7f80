"""A study of the user's own, run for real: seeds, runs that start from others, own answers, layers from a trace, a
second base model, benchmarks and a figure from files, and at last checkpoints that TRL made."""

import json
import re
import shutil

import pandas as pd
import pytest

from scalpel.artifact.files import read_json
from tests.test_given import train_with_trl
from tests.test_workflow import ROOT, planned, snakemake

pytestmark = pytest.mark.campaign
EACH_SEED = (1, 2, 3)


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder as a user has it beside the checkout, with everything in it made."""
    path = tmp_path_factory.mktemp("growth") / "lab"
    shutil.copytree(ROOT / "tests" / "growth", path)
    snakemake("--cores", "2", cwd=path)
    return path


def test_the_whole_study(lab):
    results = lab / "results"
    frame = pd.read_csv(results / "figures/growth/cubes.csv", comment="#")
    assert {(row.run, row.seed) for row in frame.itertuples()} >= {("sft", seed) for seed in EACH_SEED}
    scores = pd.read_csv(results / "tables/growth/scores.csv", comment="#")
    assert {"sums", "yes_no", "MATH-500", "MMLU"} <= set(scores["benchmark"])
    assert "Nothing to be done" in snakemake("-n", cwd=lab)
    assert not list(results.glob("train/same_as_sft*")), "the same recipe and inputs are one result"


def test_a_chain_starts_from_the_run_of_its_seed(lab):
    for seed in EACH_SEED:
        recipe = read_json(only(lab, f"results/train/then_grpo.s{seed}-*") / "recipe.json")
        assert f"/sft.s{seed}-" in recipe["inputs"]["start"]["directory"]
        for reference in ("", ".from_start"):
            assert only(lab, f"results/kl/then_grpo.s{seed}.math_500{reference}-*/manifest.json")


def test_own_answers_are_trained_on(lab):
    generated = only(lab, "results/generate/*")
    spent = json.loads((generated / "spent.json").read_text())
    recipe = read_json(only(lab, "results/train/own_answers-*") / "recipe.json")
    assert recipe["inputs"]["data"]["directory"].endswith(generated.name) and spent


def test_checkpoints_that_trl_made(lab, tmp_path):
    """One entry of config.yaml: nothing is trained, everything is measured."""
    base = only(lab, "results/base/toy-*/model")
    out = train_with_trl(base, tmp_path / "trl")
    config = (lab / "config.yaml").read_text()
    (lab / "config.yaml").write_text(config + f"runs:\n  elsewhere: {{given: {{kind: local, path: {out}}}}}\n")
    jobs = planned(snakemake("-n", cwd=lab))
    assert jobs["given"] == jobs["kl"] == jobs["weight_change"] == 1 and "train" not in jobs and "base" not in jobs
    snakemake("--cores", "2", cwd=lab)
    frame = pd.read_csv(lab / "results/figures/growth/cubes.csv", comment="#")
    assert "elsewhere" in set(frame["run"])
    assert re.search("elsewhere", (lab / "results/report/growth/index.html").read_text())
