"""Model cards of finished runs, and their upload to a small hub on loopback by huggingface_hub as it is."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from scalpel.artifact.manifest import problems
from scalpel.artifact.step import Step
from scalpel.config.load import load
from scalpel.plan import Plan
from tests.finished import finish
from tests.hub import Hub
from tests.synthetic import WORKFLOW

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_" + "SeCrEt" * 6
REPO = "me/grpo-toy"


@pytest.fixture(scope="module")
def made(tiny_base, tmp_path_factory) -> Path:
    """A folder with a finished GRPO run of two checkpoints and its scores, all inputs behind it finished."""
    root = tmp_path_factory.mktemp("made")
    plan = Plan(load({}, WORKFLOW), WORKFLOW, root)
    run = plan.run("scalpel_vs_hammer", "grpo", 42)
    behind(run.checkpoints, root, tiny_base)
    listed = [{"index": i, "step": s, "path": f"checkpoints/step-{s:06d}"} for i, s in ((1, 5), (2, 10))]
    files = {"checkpoints.json": json.dumps(listed)} | {item["path"]: tiny_base for item in listed}
    finish(run.checkpoints, root, files)
    (entry,) = [e for e in plan.entries["scalpel_vs_hammer"] if e.stage == "evaluate" and e.run == "grpo"]
    behind(entry.step, root, tiny_base)
    score = {"task": "math_500", "metric": "avg", "stderr": 0.02, "questions": 48, "samples": 1}
    pd.DataFrame([score | {"step": 5, "value": 0.25}, score | {"step": 10, "value": 0.5}]).to_parquet(root / "scores")
    finish(entry.step, root, {"scores.parquet": root / "scores"})
    return root


def behind(step: Step, root: Path, base: Path) -> None:
    """Finish all that a step is made of; base: a model's directory."""
    for other in step.inputs.values():
        if not other.finished(root):
            behind(other, root, base)
            finish(other, root, {"model": base} if other.stage == "base" else {"x": other.name})


@pytest.fixture
def hub():
    with Hub(writers={TOKEN}) as hub:
        yield hub


def run(root: Path, program: str, *words: str, **environment: str) -> tuple[int, str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    told = {
        "PYTHONPATH": str(ROOT), "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.{program}", *words], cwd=root, capture_output=True, text=True,
        env=kept | told | environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode, done.stdout, done.stderr


def train_of(root: Path) -> Path:
    (found,) = root.glob("results/train/grpo-*")
    return found


def test_a_card_has_recipe_data_scores_and_licence_and_changes_no_result(made):
    before = sorted(made.rglob("*"))
    code, text, said = run(made, "card", "grpo")
    assert code == 0, said
    _, head, rest = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["scalpel", "grpo"],
        "license": "apache-2.0",
    }  # fmt: skip
    recipe = yaml.safe_load(rest.split("```yaml\n")[1].split("```")[0])
    plan = Plan(load({}, WORKFLOW), WORKFLOW, made)
    grpo = plan.run("scalpel_vs_hammer", "grpo", 42)
    assert recipe == json.loads(grpo.spec.recipe.model_dump_json())
    assert grpo.checkpoints.digest in rest and "| 50.0 ± " in rest and "| 25.0 ±" not in rest
    assert "- data `" in rest and "after 10 optimizer steps" in rest
    assert "| 25.0 ±" in run(made, "card", "grpo", "--step", "5")[1]
    assert "Scaled replica" in rest and "| MATH-500 | 50.0 ± 2.0 | 48 | generated toy questions |" in rest
    assert "questions of MATH-500 are generated" in rest
    assert sorted(made.rglob("*")) == before and not problems(train_of(made))


def test_a_card_of_a_hub_model_names_it_at_its_commit(tmp_path):
    from scalpel.card import Shared, card, metadata
    from scalpel.checkpoints import Checkpoint

    plan = Plan(load({"scale": "cluster"}, WORKFLOW), WORKFLOW, tmp_path)
    what = Shared(plan, plan.run("scalpel_vs_hammer", "sft_1ep", 42), Checkpoint(1, 463, tmp_path))
    head = metadata(what)
    assert head["base_model"] == "allenai/OLMo-2-1124-7B-Instruct" and head["license"] == "apache-2.0"
    assert head["datasets"] == ["open-r1/OpenR1-Math-220k"]
    text = card(what)
    assert "`470b1fba1ae01581f270116362ee4aa1b97f4c84`" in text and "was not evaluated" in text


def test_a_card_of_a_local_model_says_whose_model_and_whose_questions(tiny_base, tmp_path):
    """At the scale that a config has by default."""
    from scalpel.card import Shared, card
    from scalpel.checkpoints import Checkpoint

    (tmp_path / "exam.parquet").write_text("questions")
    overrides = {
        "models": {"start": {"kind": "local", "path": str(tiny_base)}}, "model": "start",
        "questions": {"math_500": {"file": str(tmp_path / "exam.parquet")}},
    }  # fmt: skip
    plan = Plan(load({"overrides": overrides}, WORKFLOW), WORKFLOW, tmp_path)
    what = Shared(plan, plan.run("scalpel_vs_hammer", "grpo", 42), Checkpoint(2, 10, tmp_path))
    (entry,) = [e for e in plan.entries["scalpel_vs_hammer"] if e.stage == "evaluate" and e.run == "grpo"]
    score = {"metric": "avg", "stderr": 0.02, "questions": 48, "samples": 1, "step": 10, "value": 0.5}
    names = {"math_500": "avg", "gsm8k": "avg", "ifeval": "prompt_level_strict_acc"}
    rows = [score | {"task": task, "metric": metric} for task, metric in names.items()]
    pd.DataFrame(rows).to_parquet(tmp_path / "scores")
    behind(entry.step, tmp_path, tiny_base)
    finish(entry.step, tmp_path, {"scores.parquet": tmp_path / "scores"})
    text = card(what)
    assert "the local model start" in text and "Scaled replica" not in text and "trained from nothing" not in text
    sha256 = hashlib.sha256(b"questions").hexdigest()[:12]
    assert f"| MATH-500 | 50.0 ± 2.0 | 48 | exam.parquet (sha256 {sha256}) |" in text
    assert "| GSM8k | 50.0 ± 2.0 | 48 | generated toy questions |" in text
    assert "| IFEval, prompts | 50.0 ± 2.0 | 48 | generated toy questions |" in text
    assert "questions of GSM8k, IFEval, prompts are generated" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("grop",), "no run is named 'grop'; did you mean 'grpo'?"),
        (("sft_1ep",), "is not finished; make it by: .venv/bin/snakemake --cores 2 results/train/sft_1ep-"),
        (("grpo", "--step", "7"), "has no checkpoint after step 7, but 5, 10."),
        (("grpo", "--seed", "1"), "run 'grpo' has no seed 1"),
    ],
)
def test_a_card_of_what_is_not_there_is_a_sentence(words, sentence, made):
    code, _, said = run(made, "card", *words)
    assert code == 2 and said.startswith("error: ") and sentence in said and len(said.splitlines()) == 1


def test_one_checkpoint_is_pushed_with_its_card_in_one_commit_and_the_token_lies_nowhere(made, hub):
    code, out, said = run(made, "push", "grpo", REPO, "--step", "5", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert code == 0, said
    assert hub.made[REPO]["visibility"] == "private" and f"/{REPO}/commit/" in said
    (commit,) = hub.commits
    folder = train_of(made) / "checkpoints" / "step-000005"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}
    card = commit["files"].pop("README.md").decode()
    assert commit["files"] == files and card == run(made, "card", "grpo", "--step", "5")[1]
    assert commit["summary"].endswith("step 5") and "model.safetensors" in files
    sent = [headers for method, _, headers in hub.asked if method == "PUT"]
    assert sent and not any("Authorization" in headers for headers in sent), "the storage is another host"
    assert TOKEN not in out + said and not problems(train_of(made))
    for path in made.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("repo", "token", "refusals", "code", "sentence"),
    [
        ("grpo", TOKEN, 0, 2, "'grpo' is no repository of the hub; name it as <owner>/<name>"),
        (REPO, None, 0, 2, "there is no token for the hub; set HF_TOKEN"),
        (REPO, "hf_wrong", 0, 2, "the hub refuses access (status 403); correct HF_TOKEN"),
        (REPO, TOKEN, 1, 1, "the hub's rate limit is reached"),
    ],
)
def test_a_push_that_cannot_be_is_a_sentence(repo, token, refusals, code, sentence, made, hub):
    hub.refusals = refusals
    environment = {"HF_TOKEN": token} if token else {}
    status, _, said = run(made, "push", "grpo", repo, HF_ENDPOINT=hub.url, **environment)
    assert status == code and sentence in said and len(said.splitlines()) == 1 and not hub.commits
    assert "hf_" not in said


def test_a_damaged_checkpoint_is_not_pushed(made, hub):
    path = train_of(made) / "checkpoints" / "step-000010" / "config.json"
    content = path.read_bytes()
    try:
        path.write_bytes(content + b" ")
        code, _, said = run(made, "push", "grpo", REPO, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    finally:
        path.write_bytes(content)
    assert code == 2 and "config.json" in said and not hub.commits and not hub.made
