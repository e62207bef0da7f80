"""The whole first paper at every scale, the authors' checkpoints, other base models, and a workstation's small ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from scalpel.config.load import load
from scalpel.config.training import TrainSettings
from scalpel.cost.estimate import estimate
from scalpel.cost.render import render
from scalpel.cost.shape import KNOWN
from scalpel.errors import UserError
from scalpel.given import branches
from scalpel.plan import Plan
from scalpel.plan.feasible import refuse_what_cannot_run
from scalpel.published import read as read_published
from tests.hub import Hub
from tests.test_hub import on_loopback
from tests.test_workflow import ROOT, planned, snakemake

WORKFLOW = ROOT / "workflow"
SCALES = ("laptop", "workstation", "gpu", "cluster")
FULL, AUTHORS, OTHERS = "scalpel_vs_hammer_full", "authors_checkpoints", "other_models"
FIGURES = {f"Figure {number}" for number in range(1, 15)}  # 15 is the recipes: `make show`


def plan(study: str, scale: str, root: Path, **raw) -> Plan:
    made = Plan(load({"scale": scale, "studies": [study], **raw}, WORKFLOW), WORKFLOW, root)
    refuse_what_cannot_run(made)
    return made


# ---------------------------------------------------------------- the full study


@pytest.mark.parametrize("scale", SCALES)
def test_the_full_study_plans_at_every_scale(scale, tmp_path):
    made = plan(FULL, scale, tmp_path)
    runs = {name: made.run(FULL, name, spec.seeds[0]) for name, spec in made.config.studies[FULL].runs.items()}
    recipes = {name: run.spec.recipe for name, run in runs.items()}
    grpo, raised = recipes["grpo"], recipes["grpo_raised_regularised"]
    assert (raised.beta, raised.epsilon, raised.max_grad_norm) == (0.04, 0.1, 0.05)  # appendix C
    assert raised.learning_rate == pytest.approx(10 * grpo.learning_rate)
    assert recipes["grpo_diverging"].learning_rate == pytest.approx(100 * grpo.learning_rate)
    assert recipes["grpo_tags"].tag_count_weight and not grpo.tag_count_weight
    assert runs["grpo_all_sources"].checkpoints.inputs["data"].recipe["filter"]["source"] is None
    trace = runs["sft_frozen_traced"].checkpoints.inputs["layers"]
    assert trace.stage == "trace" and trace.inputs["questions"].recipe["format"] == "facts"
    numbers = {d.recipe["options"].get("number") for d in made.drawings.values() if "options" in d.recipe}
    assert numbers >= FIGURES, FIGURES - numbers
    cost = estimate(made)
    assert (cost.gpu_hours > 0) == (scale != "laptop")
    for row in cost.rows:
        works = row.stage in ("train", "generate", "trace", "evaluate", "kl", "structure")
        assert bool(row.gpus) == (works or row.stage == "audit") or scale == "laptop", row.stage


@pytest.mark.slow
def test_the_dry_run_of_the_cluster_lists_every_job_with_its_resources(tmp_path):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"scale": "cluster", "studies": [FULL]}))
    output = snakemake("-n", cwd=tmp_path)
    jobs, made = planned(output), plan(FULL, "cluster", tmp_path)
    for stage in {step.stage for step in made.steps.values()}:
        assert jobs[stage] == sum(step.stage == stage for step in made.steps.values()), stage
    for job in output.split("\nrule ")[1:]:
        if job.startswith("train:"):
            assert "mem_mb=800000" in job and "runtime=1440" in job and "gpu=8" in job
    assert not (tmp_path / "results").exists()


def test_the_facts_of_causal_tracing_are_those_of_the_sample(shared_data, tmp_path):
    """The file that `make fetch` brings is the one that the real sample was cut from; the sample fits its format."""
    source = load({"scale": "cluster"}, WORKFLOW).scale.questions["facts"].file
    text = (shared_data / "rome_known_1000" / "SOURCE.md").read_text()
    assert source.repo in text and source.revision in text and source.path in text and source.sha256 in text
    facts = {"file": str(shared_data / "rome_known_1000" / "known_0000-0999.parquet")}
    made = plan(FULL, "laptop", tmp_path, overrides={"questions": {"facts": {**facts, "kind": "files"}}})
    assert any(step.stage == "questions" and step.name == "facts" for step in made.steps.values())


# ---------------------------------------------------------------- other base models


def test_other_base_models_are_a_line_each(tmp_path):
    made = plan(OTHERS, "laptop", tmp_path)
    assert len({made.run(OTHERS, name, 42).base.digest for name in made.config.studies[OTHERS].runs}) == 4
    with pytest.raises(
        UserError, match=r"models\.smaller_maths_model: branch 'main' of nvidia/AceInstruct-1\.5B is not"
    ):
        plan(OTHERS, "cluster", tmp_path)
    wanted = branches(load({"scale": "cluster", "studies": [OTHERS]}, WORKFLOW))
    assert wanted == {"nvidia/AceInstruct-1.5B": ["main"]}
    (tmp_path / "revisions.yaml").write_text(f'"nvidia/AceInstruct-1.5B@main": {"e" * 40}\n')
    for scale in ("gpu", "cluster"):
        made = plan(OTHERS, scale, tmp_path)
        assert estimate(made).gpu_hours > 0
        commits = {step.recipe["revision"] for step in made.steps.values() if step.stage == "fetch"}
        assert "e" * 40 in commits


@pytest.mark.parametrize(
    ("repo", "kind"),
    [
        ("HuggingFaceTB/SmolLM2-360M", "llama"),
        ("HuggingFaceTB/SmolLM2-1.7B", "llama"),
        ("Qwen/Qwen2.5-0.5B", "qwen2"),
        ("Qwen/Qwen2.5-7B", "qwen2"),
        ("nvidia/AceInstruct-1.5B", "qwen2"),
    ],
)
def test_sizes_of_models_that_are_not_fetched_are_those_of_their_architecture(repo, kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = KNOWN[repo]
    with torch.device("meta"):
        config = AutoConfig.for_model(
            kind, vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=shape.tied,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    published = {  # model cards
        "HuggingFaceTB/SmolLM2-360M": 361_821_120, "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    }  # fmt: skip
    assert shape.parameters == published.get(repo, shape.parameters)


# ---------------------------------------------------------------- the workstation


def test_the_workstation_takes_a_day(tmp_path):
    """The study of the paper's main contrast, by the arithmetic that preflight prints."""
    made = plan("scalpel_vs_hammer", "workstation", tmp_path)
    cost = estimate(made)
    assert 2 < cost.gpu_hours < 24 and all(row.gpus in (0, 1) for row in cost.rows)
    text = render(cost)
    assert "GeForce RTX 3090: 7.1e13 FLOP/s bfloat16, 3.56e13 float32" in text
    assert "6,000 (filter.most_rows: an upper bound)" in text
    for model in made.config.scale.models:
        small = plan("scalpel_vs_hammer", "workstation", tmp_path, overrides={"model": model})
        assert estimate(small).gpu_hours < 24
    least = 16 * KNOWN["Qwen/Qwen2.5-0.5B"].parameters  # float32 weights, gradients and two moments
    settings, recipe = made.config.scale.train_settings, made.config.studies["scalpel_vs_hammer"].runs["sft_1ep"].recipe
    logits = 2 * 4 * settings.sequences_per_device * recipe.max_tokens * KNOWN["Qwen/Qwen2.5-0.5B"].vocabulary
    assert least + logits < 24e9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_small_model_of_the_hub_s_cache_is_a_base_model(kind, tiny_base, tiny_data, tmp_path):
    """Laid out as huggingface_hub's cache has it: a snapshot of links into blobs. It becomes a base model, one that
    trains, answers, and is compared, with tied embeddings, grouped keys and, in Qwen2, biases."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from scalpel.analysis.weight_change import weight_change
    from scalpel.methods.loop import TrainingRun
    from scalpel.methods.sft import SFTRecipe
    from scalpel.methods.sft_trainer import train
    from scalpel.weights import load_model

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    saved = tmp_path / "saved"
    AutoModelForCausalLM.from_config(config).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    snapshot = tmp_path / "hub" / "models--someone--Small" / "snapshots" / ("a" * 40)
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(saved.iterdir())):
        shutil.move(path, blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:064x}")

    model = {"kind": "local", "path": str(snapshot)}
    few = {"steps": 4, "checkpoints": 2}
    raw = {
        "models": {"qwen2_5_0_5b_instruct": None, "cached": model}, "model": "cached", "resources": {"base": {}},
        "methods": {"grpo": few},
    }  # fmt: skip
    runs = {"sft_matched": few}
    made = plan("scalpel_vs_hammer", "workstation", tmp_path, overrides=raw, runs=runs)
    made.record()
    (base,) = (step for step in made.steps.values() if step.stage == "base")
    program = [sys.executable, "-m", "scripts.base", base.directory]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / base.directory / "model"
    loaded = load_model(directory, "float32")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight

    out = tmp_path / "run"
    out.mkdir()
    recipe = SFTRecipe(learning_rate=1e-3, sequences_per_step=4, steps=2, checkpoints=1, max_tokens=600)
    settings = TrainSettings(sequences_per_device=2, gradient_checkpointing=True)
    train(TrainingRun(recipe, directory, directory, *tiny_data, 3, recipe.trainable, out, settings))
    (trained,) = (out / "checkpoints").iterdir()
    (measured := tmp_path / "weight_change").mkdir()
    weight_change(directory, [(2, trained)], measured, 1)
    frame = pq.read_table(measured / "weight_change.parquet").to_pandas()
    assert (frame["relative"] > 0).all() and len(frame) == 2 * 7


# ---------------------------------------------------------------- the authors' checkpoints


@pytest.fixture
def authors_hub(tiny_base):
    """(a hub with the authors' repositories and branches, the content of the study's file)."""
    study = yaml.safe_load((WORKFLOW / "studies" / f"{AUTHORS}.yaml").read_text())
    with Hub() as hub:
        for number, run in enumerate(study["runs"].values()):
            repo = run["given"]["repo"]
            hub.branches[repo] = {}
            for step, branch in run["given"]["checkpoints"].items():
                hub.branches[repo][branch] = f"{number}{step:039d}"
        yield hub, study


def resolve(folder: Path, hub: Hub) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "scripts.resolve"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=on_loopback(hub, folder))


def test_the_authors_branches_are_resolved_and_planned(authors_hub, tmp_path):
    hub, _ = authors_hub
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"scale": "gpu", "studies": [AUTHORS]}))
    with pytest.raises(UserError, match=r"branch 'v01\.14-step-000000029' of Neelectric/.*run `make resolve`"):
        plan(AUTHORS, "gpu", tmp_path)
    assert resolve(tmp_path, hub).returncode == 0
    made = plan(AUTHORS, "gpu", tmp_path)
    published = read_published(WORKFLOW / "published" / "scalpel_vs_hammer.yaml")["weight_change_trajectories"]
    for name, theirs in (("grpo", "grpo"), ("sft_3ep", "sft_3ep"), ("sft_grpo_rate", "sft_lr_1e-6")):
        steps = made.run(AUTHORS, name, 0).steps
        assert len(steps) == 20 and set(published[theirs]["steps"]) <= set(steps)  # values of one or none are missing
    assert not {step.stage for step in made.steps.values()} & {"train", "data", "audit"}
    cost = estimate(made)
    fetched = next(row for row in cost.rows if row.stage == "fetch")
    assert fetched.kept.value == pytest.approx((62 + 1) * 14.6e9, rel=0.01)
    assert cost.gpu_hours > 1 and cost.kept < 1e12 and "train" not in {row.stage for row in cost.rows}
    numbers = {d.recipe["options"].get("number") for d in made.drawings.values() if "options" in d.recipe}
    assert numbers >= {f"Figure {number}" for number in range(3, 8)}
    repo = "Neelectric/OLMo-2-1124-7B-Instruct_SFTv02.00"
    hub.branches[repo] = {"main": "f" * 40}
    (tmp_path / "revisions.yaml").unlink()
    done = resolve(tmp_path, hub)
    assert done.returncode == 2 and f"{repo} has no branch 'v02.00-step-000000029'; it has main" in done.stderr
    with pytest.raises(UserError, match="no model is named 'olmo2_7b_instruct'"):
        plan(AUTHORS, "laptop", tmp_path)


@pytest.mark.slow
def test_small_checkpoints_laid_out_as_the_authors_branches_become_their_figures(authors_hub, tiny_base, tmp_path):
    """From branches of the hub to the weight change of every checkpoint and its figure, by Snakemake."""
    hub, study = authors_hub
    weights = load_file(tiny_base / "model.safetensors")
    rest = {path.name: path.read_bytes() for path in tiny_base.iterdir() if path.suffix != ".safetensors"}
    kept = {name: run for name, run in study["runs"].items() if name in ("grpo", "sft_3ep")}
    for run in kept.values():
        given = run["given"]
        given["checkpoints"] = {step: given["checkpoints"][step] for step in list(given["checkpoints"])[::19]}
        for step, branch in given["checkpoints"].items():
            moved = {name: tensor * (1 + step * 1e-5) for name, tensor in weights.items()}
            save_file(moved, tmp_path / "moved.safetensors", metadata={"format": "pt"})
            commit = hub.branches[given["repo"]][branch]
            content = (tmp_path / "moved.safetensors").read_bytes()
            hub.files["model", given["repo"], commit] = rest | {"model.safetensors": content}
    study["runs"], study["exhibits"] = kept, {"norms_course": study["exhibits"]["norms_course"]}
    study["exhibits"]["norms_course"].update(runs=["grpo", "sft_3ep"], published_as={})
    study["looks"] = {}
    (tmp_path / "authors.yaml").write_text(yaml.safe_dump(study))
    models = {"olmo2_7b_instruct": {"kind": "local", "path": str(tiny_base)}}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"studies": ["authors.yaml"], "overrides": {"models": models}})
    )
    assert resolve(tmp_path, hub).returncode == 0
    figure = "results/figures/authors/norms_course"
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "2", f"{figure}.pdf"]
    environment = on_loopback(hub, tmp_path)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    import pandas as pd

    shown = pd.read_csv(tmp_path / f"{figure}.csv", skiprows=1)
    ours = shown[shown["source"] == "ours"]
    assert list(zip(ours["run"], ours["step"], strict=True)) == [
        (name, step) for name, run in kept.items() for step in run["given"]["checkpoints"]
    ]
    assert ours["relative"].tolist() == pytest.approx([step * 1e-5 for step in ours["step"]], rel=1e-2)
    assert (shown["source"] == "published").sum() == 20 + 19
    assert json.loads((tmp_path / f"{figure}.json").read_text())
