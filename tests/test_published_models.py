"""The study of published models: branches resolved, models fetched and taken in from a small hub, its cost told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from scalpel.artifact.files import MANIFEST, read_json
from scalpel.artifact.step import Step
from scalpel.chat import load_tokenizer, token_ids
from scalpel.config.load import load
from scalpel.cost.estimate import estimate
from scalpel.cost.render import render
from scalpel.errors import UserError
from scalpel.given import branches, write_revisions
from scalpel.plan import Plan
from scalpel.plan.feasible import refuse_what_cannot_run
from tests.hub import Hub
from tests.tiny import WORLD

ROOT = Path(__file__).resolve().parent.parent
STUDY = "published_models"
RAW = {"studies": [STUDY], "scale": "gpu"}
REPOS = {
    "Elliott/LUFFY-Qwen-Math-7B-Zero", "Elliott/Qwen2.5-Math-7B-SFT", "Elliott/Qwen2.5-Math-7B-SFT-RL",
    "RoadQAQ/ReLIFT-Qwen2.5-Math-7B-Zero", "rzzhan/ExGRPO-Qwen2.5-Math-7B-Zero", "Yuqian-Fu/SRFT",
    "hkust-nlp/Qwen-2.5-Math-7B-SimpleRL-Zero", "PRIME-RL/Eurus-2-7B-PRIME-Zero", "sail/Qwen2.5-Math-7B-Oat-Zero",
}  # fmt: skip
TEMPLATES = {"simplerl_zero": None, "oat_zero": None, "prime_zero": "Present the answer in LaTex format"}  # their own


def commit_of(repo: str) -> str:
    return f"{sorted(REPOS).index(repo) + 1:040x}"


def planned(root: Path, raw: dict) -> Plan:
    plan = Plan(load(raw, ROOT / "workflow"), ROOT / "workflow", root)
    refuse_what_cannot_run(plan)
    return plan


def test_a_commit_that_nobody_knows_is_asked_for(tmp_path):
    config = load(RAW, ROOT / "workflow")
    assert branches(config) == {repo: ["main"] for repo in REPOS}
    with pytest.raises(UserError, match=r"branch 'main' of \S+ is not resolved to a commit yet; run `make"):
        planned(tmp_path, RAW)
    with pytest.raises(UserError, match="qwen2_5_math_7b"):
        load(RAW | {"scale": "laptop"}, ROOT / "workflow")


@pytest.mark.parametrize("scale", ["gpu", "cluster"])
def test_its_cost_is_told_before_anything_is_fetched(scale, tmp_path):
    write_revisions(tmp_path, {f"{repo}@main": commit_of(repo) for repo in REPOS})
    plan = planned(tmp_path, RAW | {"scale": scale})
    cost = estimate(plan)
    rows = {row.stage: row for row in cost.rows}
    assert rows["given"].jobs == len(REPOS) + len(TEMPLATES) and "train" not in rows
    assert 10 * 15e9 < rows["fetch"].kept.value < 11 * 15e9, "nine models and their base, once"
    assert all(0 < rows[stage].gpu_hours < 1000 for stage in ("evaluate", "kl", "structure"))
    assert "N = 7,615" in render(cost)
    for name, text in TEMPLATES.items():
        run = plan.run(STUDY, name, 0)
        assert text in run.asked.recipe["chat_template"] if text else run.asked.recipe["chat_template"] is None
        assert "config_edits" not in run.base.recipe
    base = plan.run(STUDY, "luffy", 0).base
    assert base.recipe["config_edits"] == {"rope_theta": 40000.0, "max_position_embeddings": 16384}
    assert "Your task is to follow a systematic" in base.recipe["chat_template"]


def small_bases(path: Path) -> dict[str, dict]:
    small = {"kind": "local", "path": str(path), "chat_template": "sft_then_rl"}
    return {"qwen2_5_math_7b": small, "qwen2_5_math_7b_unedited": small}


def environment_of(hub: Hub, root: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return kept | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home")}


def run(root: Path, environment: dict[str, str], *words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_from_a_branch_to_a_run(tiny_base, tmp_path):
    """resolve, fetch, base and given by their programs, on small models laid out as the hub lays them."""
    with Hub() as hub:
        for repo in REPOS:
            hub.files["model", repo, commit_of(repo)] = {path.name: path.read_bytes() for path in tiny_base.iterdir()}
            hub.branches[repo] = {"main": commit_of(repo)}
        raw = RAW | {"overrides": {"models": small_bases(tiny_base)}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
        environment = environment_of(hub, tmp_path)
        run(tmp_path, environment, "-m", "scripts.resolve")
        assert yaml.safe_load((tmp_path / "revisions.yaml").read_text()) == {
            f"{repo}@main": commit_of(repo) for repo in REPOS
        }
        plan = planned(tmp_path, raw)
        plan.record()
        given = plan.run(STUDY, "luffy", 0).checkpoints
        for step in (given.inputs["fetch/000001"], given.inputs["base"], given):
            run(tmp_path, environment, "-m", f"scripts.{step.stage}", str(tmp_path / step.directory))
    manifest = read_json(tmp_path / given.directory / MANIFEST)
    listing = json.loads((tmp_path / given.directory / "checkpoints.json").read_text())
    assert [item["step"] for item in listing] == [1]
    assert any(name.endswith("model.safetensors") for name in manifest["files"])


OWN = (  # a template that lies with a model
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SEVERAL = """
import importlib, sys
from scalpel.artifact.stage import run_stage
from scalpel.exhibits import render
for directory in sys.argv[1:]:
    sys.argv = ["stage", directory]
    if directory.endswith(".json"):
        render.main()
    else:
        run_stage(importlib.import_module("scripts." + directory.split("/")[1]).produce)
"""


def in_order(steps: list[Step]) -> list[Step]:
    """These and what they are made from, inputs first, each once."""
    found: dict[str, Step] = {}
    for step in steps:
        found |= {other.digest: other for other in in_order(list(step.inputs.values()))} | {step.digest: step}
    return list(found.values())


@pytest.mark.slow
def test_two_published_models_are_measured(tiny_base, other_base, tmp_path):
    """Scores, KL, weight change, structure and the frontier of two of the study's models; one has its own template."""
    two = {"luffy": "Elliott/LUFFY-Qwen-Math-7B-Zero", "oat_zero": "sail/Qwen2.5-Math-7B-Oat-Zero"}
    shown = ["base", *two]
    study = {"title": "Two of them", "extends": STUDY, "exhibits": {"frontier": {"runs": shown}}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(study))
    tasks = {"math_500": {"samples": 1, "max_new_tokens": 8}} | dict.fromkeys(("gsm8k", "mmlu", "ifeval"))
    overrides = {
        "models": small_bases(tiny_base), "world": WORLD.identity(), "evaluation": {"tasks": tasks},
        "guard": ["math_500", "mmlu_pro"],
    }  # fmt: skip
    raw = {"studies": [str(tmp_path / "two.yaml")], "scale": "laptop", "overrides": overrides}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    with Hub() as hub:
        hub.branches |= {repo: {"main": commit_of(repo)} for repo in REPOS}
        for repo in two.values():
            hub.files["model", repo, commit_of(repo)] = {path.name: path.read_bytes() for path in other_base.iterdir()}
        hub.files["model", two["oat_zero"], commit_of(two["oat_zero"])]["chat_template.jinja"] = OWN.encode()
        environment = environment_of(hub, tmp_path)
        run(tmp_path, environment, "-m", "scripts.resolve")
        plan = planned(tmp_path, raw)
        plan.record()
        drawing = plan.drawings["two", "frontier"]
        needed = in_order([entry.step for entry in plan.entries["two"] if entry.run in shown])
        assert "train" not in {step.stage for step in needed}
        fetched = [step.directory for step in needed if step.stage == "fetch"]
        run(tmp_path, environment, "-c", SEVERAL, *fetched)
        rest = [step.directory for step in needed if step.stage != "fetch"]
        run(tmp_path, environment, "-c", SEVERAL, *rest, drawing.recipe_path)

    def table(stage: str, name: str, file: str) -> pd.DataFrame:
        (entry,) = (e for e in plan.entries["two"] if e.stage == stage and e.run == name)
        return pd.read_parquet(tmp_path / entry.step.directory / file)

    problem, solution = pd.read_parquet(next(tmp_path.glob("results/questions/math_500-*/questions.parquet")))[
        ["problem", "solution"]
    ].iloc[0]
    for name, mark in (("base", "This is the problem"), ("luffy", "This is the problem"), ("oat_zero", "user: ")):
        samples = table("evaluate", name, "samples.parquet")
        asked = samples[samples["task"] == "math_500"]["prompt"]
        assert asked.str.contains(mark).all() and asked.str.startswith("user: ").all() == (mark == "user: "), name
        if name != "base":
            model = tmp_path / plan.run("two", name, 0).asked.directory / "checkpoints" / "step-000001"
            first = table("kl", name, "kl.parquet").iloc[0]
            assert first["positions"] == len(token_ids(load_tokenizer(model), problem, solution)) and first["kl"] > 0
            assert (table("weight_change", name, "weight_change.parquet")["relative"] > 0).any()
            assert len(table("structure", name, "structure.parquet"))
    assert plan.is_current(drawing) and all((tmp_path / file).stat().st_size for file in drawing.outputs)
