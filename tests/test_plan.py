"""The plan: changes that reach exactly what depends on them, and growth that loses no result."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scalpel.artifact.identity import canonical
from scalpel.artifact.step import record_recipe
from scalpel.chat import SYSTEM_PROMPT
from scalpel.config.load import load
from scalpel.cost.estimate import COSTS
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.plan import Plan
from scalpel.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
SFT = {"method": "sft", "epochs": 1}
FULL = "scalpel_vs_hammer_full"


def plan(raw=None, root=Path("."), workflow=WORKFLOW) -> Plan:
    return Plan(load(raw or {}, workflow), workflow, root)


def new_steps(raw, before=None) -> list[str]:
    """Stage/run of the steps that a change makes new."""
    old, new = plan(before), plan((before or {}) | raw)
    return sorted(f"{s.stage}/{s.name.split('.')[0]}" for digest, s in new.steps.items() if digest not in old.steps)


def lost_steps(raw, before=None) -> set[str]:
    """Steps that a change takes away."""
    old, new = plan(before), plan((before or {}) | raw)
    return {f"{s.stage}/{s.name}" for digest, s in old.steps.items() if digest not in new.steps}


def with_file(workflow: Path, name: str, change) -> Path:
    """A copy of workflow/ with one study's or scale's text changed."""
    for folder in ("studies", "scales", "published"):
        shutil.copytree(WORKFLOW / folder, workflow / folder)
        for path in (WORKFLOW / folder).glob("*.yaml"):
            text = path.read_text()
            (workflow / folder / path.name).write_text(change(text) if f"{folder}/{path.name}" == name else text)
    return workflow


# ---------------------------------------------------------------- what a change reaches


def test_a_learning_rate_reaches_its_run_alone():
    new = new_steps({"runs": {"sft_3ep": {"learning_rate": 2e-4}}})
    assert new == ["evaluate/sft_3ep", "kl/sft_3ep", "train/sft_3ep", "weight_change/sft_3ep"]
    new = new_steps({"runs": {"grpo": {"learning_rate": 2e-4}}})
    assert {s.split("/")[1] for s in new} == {"grpo", "sft_grpo_rate_1ep"}, "and the run that has its rate"


def test_evaluation_options_leave_training_alone():
    new = new_steps({"overrides": {"evaluation": {"temperature": 0.7}}})
    assert {name.split("/")[0] for name in new} == {"evaluate"}


def test_settings_are_not_hashed():
    """Another accumulation is another audit, and the same training."""
    settings = {"train_settings": {"sequences_per_device": 2}, "resources": {"train": {"mem_mb": 9}}}
    assert set(new_steps({"overrides": settings})) == {"audit/single"}


def test_an_exhibit_s_option_reaches_no_step(tmp_path):
    change = with_file(
        tmp_path, "studies/scalpel_vs_hammer.yaml", lambda t: t.replace("number: Figure 4", "number: F4")
    )
    before, after = plan(), plan(workflow=change)
    assert before.steps.keys() == after.steps.keys()
    differ = {n for (s, n), d in after.drawings.items() if d.digest != before.drawings[s, n].digest}
    assert differ == {"kl", "report"}


def test_a_source_file_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / f"{name}.parquet").write_text(content)

    def data(name):
        source = {"kind": "parquet", "path": str(tmp_path / f"{name}.parquet")}
        made = plan({"overrides": {"datasets": {"toy": {"source": source}}}})
        return next(s.digest for s in made.steps.values() if s.stage == "data")

    assert data("a") == data("b") != data("c")
    with pytest.raises(UserError, match=r"absent\.parquet does not exist"):
        data("absent")


def test_recipes_hold_no_path_and_no_circumstance():
    for scale in ("laptop", "workstation", "gpu", "cluster"):
        for step in plan({"scale": scale}).steps.values():
            text = canonical(step.recipe)
            assert not any(word in text for word in ("threads", "sequences_per_device", "results/", "mem_mb"))


# ---------------------------------------------------------------- growth


def test_one_more_benchmark_makes_its_own_evaluations_and_nothing_else(tmp_path, monkeypatch):
    """A file for one more benchmark at the gpu scale: no training, no KL, no other evaluation is planned again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "aime.parquet"
    path.write_bytes(b"x")
    grown = {"overrides": {"questions": {"aime24": {"file": str(path)}}, "evaluation": {"tasks": {"aime24": {}}}}}
    before = {"scale": "gpu"}
    assert not lost_steps(grown, before)
    new = Counter(name.split("/")[0] for name in new_steps(grown, before))
    assert new == {"questions": 1, "evaluate": 6 * 2 + 1}
    made = plan(before | grown)
    assert all(
        ".aime24" in s.name for s in made.steps.values() if s.stage == "evaluate" and "aime24" in s.recipe["tasks"]
    )


def test_a_file_alone_plans_nothing():
    assert not new_steps({"overrides": {"questions": {"aime25": {"file": "absent.parquet"}}}})


def test_groups_load_a_model_once_for_all_their_tasks():
    """One evaluation per run and shard, as before there were groups."""
    for scale, shards in (("laptop", 1), ("workstation", 1), ("gpu", 2), ("cluster", 4)):
        evaluations = [s for s in plan({"scale": scale}).steps.values() if s.stage == "evaluate"]
        assert len(evaluations) == 6 * shards + 1


def test_a_removed_task_reaches_evaluation_alone():
    removed = {"overrides": {"evaluation": {"tasks": {"ifeval": None}}}}
    assert {name.split("/")[0] for name in new_steps(removed)} == {"evaluate"}


def test_guarding_against_one_more_set_filters_and_trains_again():
    new = new_steps({"overrides": {"guard": ["math_500"]}})
    assert {"data", "order", "train"} <= {name.split("/")[0] for name in new}


def test_one_more_run_leaves_all_others_alone():
    grown = {"runs": {"slow": SFT | {"learning_rate": 1e-5}}}
    assert not lost_steps(grown)
    assert new_steps(grown) == ["evaluate/slow", "kl/slow", "train/slow", "weight_change/slow"]


# ---------------------------------------------------------------- seeds, starts, answers, traces


def test_seeds_are_an_axis_that_keeps_the_first():
    seeds = {"runs": {"grpo": {"seeds": [42, 43, 44]}}}
    assert not lost_steps(seeds)
    new = Counter(name.split("/")[0] for name in new_steps(seeds))
    assert new == {"order": 2, "train": 2, "evaluate": 2, "kl": 2, "weight_change": 2}
    made = plan(seeds)
    entries = [e for e in made.entries["scalpel_vs_hammer"] if e.stage == "evaluate" and e.run == "grpo"]
    assert [e.seed for e in entries] == [42, 43, 44]
    recipes = {json.dumps(e.step.recipe) for e in entries}
    assert len(recipes) == 1, "evaluation's own seed is common to all, so that scores stay paired"
    assert "seed" not in canonical(entries[0].step.inputs["checkpoints"].recipe)


def test_a_run_may_start_from_another():
    made = plan({"runs": {"then_rl": {"method": "grpo", "start_from": "sft_3ep"}}})
    run = made.run("scalpel_vs_hammer", "then_rl", 42)
    start = made.run("scalpel_vs_hammer", "sft_3ep", 42)
    assert run.checkpoints.inputs["start"] is start.checkpoints and run.base is start.base
    assert run.chain == [start.checkpoints]
    found = {(e.stage, e.reference): e.step for e in made.entries["scalpel_vs_hammer"] if e.run == "then_rl"}
    assert found["kl", "start"].inputs["reference"] is start.checkpoints
    assert set(found) == {
        ("train", "base"), ("evaluate", "base"), ("kl", "base"), ("kl", "start"),
        ("weight_change", "base"), ("weight_change", "start"),
    }  # fmt: skip


def test_a_chain_s_seeds_meet():
    seeds = {"sft_3ep": {"seeds": [1, 2]}, "then_rl": {"method": "grpo", "start_from": "sft_3ep", "seeds": [2, 1]}}
    made = plan({"runs": seeds})
    assert made.run("scalpel_vs_hammer", "then_rl", 2).start.seed == 2
    seeds["then_rl"]["seeds"] = [3]
    with pytest.raises(UserError, match="run 'sft_3ep' has no seed 3, but 1, 2"):
        plan({"runs": seeds})


def test_runs_that_are_made_from_each_other_are_refused():
    circle = {"a": SFT | {"start_from": "b"}, "b": SFT | {"start_from": "a"}}
    with pytest.raises(UserError, match="in a circle: a -> b -> a"):
        plan({"runs": circle})
    with pytest.raises(UserError, match="has no run 'gone'"):
        plan({"runs": {"a": SFT | {"start_from": "gone"}}})
    with pytest.raises(UserError, match="study 'other' is not in use"):
        plan({"runs": {"a": SFT | {"data_from": "other/grpo"}}})


def test_a_run_may_train_on_a_model_s_own_answers():
    made = plan({"runs": {"own": SFT | {"data_from": "base"}, "oracle": SFT | {"data_from": "grpo"}}})
    own, oracle = (made.run("scalpel_vs_hammer", name, 42) for name in ("own", "oracle"))
    assert own.answers.stage == "generate" and own.checkpoints.inputs["data"] is own.answers
    assert oracle.answers.inputs["checkpoints"] is made.run("scalpel_vs_hammer", "grpo", 42).checkpoints
    assert oracle.chain == [oracle.answers]
    assert own.answers.digest != oracle.answers.digest


def test_arms_with_different_answers_may_share_their_questions():
    """The teacher's and the model's own answers, to the questions that both answer."""
    made = plan(
        {
            "runs": {
                "teacher": SFT | {"common_with": ["base", "grpo"]},
                "own": SFT | {"data_from": "base", "common_with": ["traces", "grpo"]},
                "alone": SFT | {"data_from": "base", "common_with": ["base"]},
            }
        }
    )
    runs = {name: made.run("scalpel_vs_hammer", name, 42).checkpoints.inputs["data"] for name in ("teacher", "own")}
    assert [rows.stage for rows in runs.values()] == ["common", "common"]
    assert runs["teacher"].inputs["own"].stage == "data" and runs["own"].inputs["own"].stage == "generate"
    assert runs["teacher"].inputs.keys() == {"own", "others/base", "others/grpo"}
    assert runs["own"].inputs.keys() == {"own", "others/traces", "others/grpo"}
    assert runs["own"].inputs["own"] is runs["teacher"].inputs["others/base"]  # answers are generated once
    assert made.run("scalpel_vs_hammer", "alone", 42).checkpoints.inputs["data"].stage == "generate"
    entries = made.entries["scalpel_vs_hammer"]
    assert Counter(e.stage for e in entries if e.stage in ("data", "generate", "common")) == Counter(
        data=1, generate=2, common=2
    )
    with pytest.raises(UserError, match="common_with"):
        plan({"runs": {"teacher": SFT | {"common_with": ["nobody"]}}})
    with pytest.raises(UserError, match="'traces' means"):
        plan({"runs": {"traces": SFT}})


def test_a_costly_task_may_be_asked_of_last_checkpoints_alone():
    tasks = {"passes": {"questions": "math_500", "samples": 8, "at": "last"}}
    before = plan({"overrides": {"evaluation": {"tasks": tasks}}})
    entries = [e for e in before.entries["scalpel_vs_hammer"] if e.stage == "evaluate" and e.part == "passes"]
    assert all(len(e.step.recipe["checkpoints"]) == 1 for e in entries if e.run != "base") and len(entries) == 7
    assert not lost_steps({"overrides": {"evaluation": {"tasks": tasks}}})
    mixed = {"math_500": {"at": "last"}}
    with pytest.raises(UserError, match="group 'core' must have one value of `at`"):
        plan({"overrides": {"evaluation": {"tasks": mixed}}})


def test_the_base_model_may_be_asked_under_another_template():
    models = {"plain": {"kind": "toy", "chat_template": "sft_then_rl"}}
    raw = {"overrides": {"models": models, "base_evaluated_as": "plain"}}
    assert {s.split("/")[0] for s in lost_steps(raw)} == {"evaluate"}
    assert Counter(new_steps(raw)) == Counter(["base/plain", "evaluate/plain"])
    models["plain"]["toy"] = {"hidden_size": 32, "heads": 2}
    with pytest.raises(UserError, match="it must be 'toy' but for its chat template"):
        plan(raw)


def test_layers_may_come_from_a_trace():
    traced = SFT | {"layers_from": "base", "trainable": {"freeze_mlp_above": 0.1}}
    made = plan({"runs": {"traced": traced}})
    run = made.run("scalpel_vs_hammer", "traced", 42)
    assert run.checkpoints.inputs["layers"].stage == "trace"
    assert run.checkpoints.inputs["layers"].inputs["questions"].name == "facts"


def test_several_base_models_stand_in_one_plan():
    """Each with its tokenizer's rows, its chat template and recorded edits of its config."""
    model = {"kind": "toy", "toy": {"hidden_size": 32, "heads": 2}, "chat_template": "sft_then_rl"}
    grown = {
        "overrides": {"models": {"other": model | {"config_edits": {"rope_theta": 40000}}}},
        "runs": {"theirs": SFT | {"model": "other"}},
    }
    assert not lost_steps(grown)
    made = plan(grown)
    run = made.run("scalpel_vs_hammer", "theirs", 42)
    assert run.base.name == "other" and run.base.recipe["config_edits"] == {"rope_theta": 40000.0}
    assert "This is the problem" in run.base.recipe["chat_template"]
    assert len([s for s in made.steps.values() if s.stage == "data"]) == 2
    with pytest.raises(UserError, match="neither a template"):
        plan({"overrides": {"models": {"toy": {"chat_template": "olmo"}}}})


def test_a_start_of_another_model_is_refused():
    raw = {
        "overrides": {"models": {"other": {"kind": "toy", "toy": {"hidden_size": 32, "heads": 2}}}},
        "runs": {"then": SFT | {"start_from": "grpo", "model": "other"}},
    }
    with pytest.raises(UserError, match="it starts from 'grpo', which has another base model than 'other'"):
        plan(raw)


def test_fewer_checkpoints_may_be_evaluated():
    made = plan({"runs": {"sft_1ep": {"evaluated": 5}}})
    (found,) = [e.step for e in made.entries["scalpel_vs_hammer"] if e.stage == "evaluate" and e.run == "sft_1ep"]
    assert found.recipe["checkpoints"] == [4, 8, 12, 16, 20]


# ---------------------------------------------------------------- names


def test_two_names_for_the_same_are_one_result():
    made = plan({"runs": {"again": SFT}})
    assert [s for s in made.steps.values() if s.name.startswith("again")] == []
    entries = made.entries["scalpel_vs_hammer"]
    steps = {e.run: e.step for e in entries if e.stage == "train" and e.run in ("again", "sft_1ep")}
    assert steps["again"] is steps["sft_1ep"]


def test_a_result_keeps_the_name_it_was_made_under(tmp_path):
    old = plan().run("scalpel_vs_hammer", "sft_1ep", 42).checkpoints
    record_recipe(old, tmp_path)
    renamed = with_file(tmp_path / "w", "studies/scalpel_vs_hammer.yaml", lambda t: t.replace("sft_1ep", "one_epoch"))
    now = plan(root=tmp_path, workflow=renamed)
    assert now.run("scalpel_vs_hammer", "one_epoch", 42).checkpoints.directory == old.directory


# ---------------------------------------------------------------- given runs


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """A trainer's output directory, hashed with a cache of the test's own: outputs("checkpoint-3")."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(*names: str, weights: str = "model.safetensors") -> Path:
        for name in names:
            directory = tmp_path / "out" / name
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "config.json").write_text("{}")
            (directory / weights).write_text(name)
        return tmp_path / "out"

    return make


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("checkpoint-20", "checkpoint-3"), (3, 20)),  # transformers, TRL
        (("global_step_7/actor/huggingface", "global_step_14/actor/huggingface"), (7, 14)),  # verl
        (("v01.14-step-000000029",), (29,)),
        ((".",), (1,)),  # one saved model
    ],
)
def test_given_checkpoints_are_found(outputs, names, steps):
    made = plan({"runs": {"mine": {"given": {"kind": "local", "path": str(outputs(*names))}}}})
    run = made.run("scalpel_vs_hammer", "mine", 0)
    assert run.steps == steps and run.checkpoints.stage == "given" and run.start is None
    assert sorted(map(int, run.checkpoints.recipe["files"])) == list(steps)
    stages = Counter(e.stage for e in made.entries["scalpel_vs_hammer"] if e.run == "mine")
    assert stages == {"given": 1, "evaluate": 1, "kl": 1, "weight_change": 1}


def test_given_weights_that_are_no_safetensors_are_refused(outputs, tmp_path):
    raw = {"runs": {"mine": {"given": {"kind": "local", "path": str(outputs("checkpoint-3", weights="w.bin"))}}}}
    with pytest.raises(UserError, match=r"pickled weights alone \(w.bin\), which are never read"):
        plan(raw)
    (tmp_path / "out" / "checkpoint-3" / "w.bin").rename(
        tmp_path / "out" / "checkpoint-3" / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match="holds an adapter alone"):
        plan(raw)
    with pytest.raises(UserError, match="holds neither checkpoint-<step>"):
        plan({"runs": {"mine": {"given": {"kind": "local", "path": str(tmp_path)}}}})


def test_given_branches_of_the_hub_are_resolved_to_commits(tmp_path):
    given = {"kind": "hub", "repo": "a/b", "checkpoints": {29: "step-29", 58: "c" * 40}}
    raw = {"runs": {"theirs": {"given": given}}}
    with pytest.raises(UserError, match="branch 'step-29' of a/b is not resolved to a commit yet; run `make resolve`"):
        plan(raw, tmp_path)
    (tmp_path / "revisions.yaml").write_text(f'"a/b@step-29": {"d" * 40}\n')
    step = plan(raw, tmp_path).run("scalpel_vs_hammer", "theirs", 0).checkpoints
    assert [s.recipe["revision"] for r, s in step.inputs.items() if r.startswith("fetch/")] == ["d" * 40, "c" * 40]


def test_a_given_run_s_template_reaches_what_is_rendered_by_it(outputs):
    path = outputs("checkpoint-3", "checkpoint-20")

    def raw(**given) -> dict:
        runs = {"mine": {"given": {"kind": "local", "path": str(path)} | given}}
        return {"runs": runs | {"then": SFT | {"start_from": "mine"}, "of_it": SFT | {"data_from": "mine"}}}

    named, before = raw(chat_template="sft_then_rl"), raw()
    new = set(new_steps(named, before))
    rendered = {"given/mine", "evaluate/mine", "kl/mine", "generate/mine", "order/mine"}
    assert {s for s in new if s.endswith("/mine")} == rendered
    assert not any(s.endswith("/then") for s in new), "it trains under the base model's"
    assert lost_steps(named, before).isdisjoint({"given/mine", "weight_change/mine"}), "weights know no template"
    run = plan(named).run("scalpel_vs_hammer", "mine", 0)
    assert "This is the problem" in run.asked.recipe["chat_template"] and "chat_template" not in run.checkpoints.recipe
    assert run.spec.described()["given"]["chat_template"] == "sft_then_rl"
    unnamed = plan(before).run("scalpel_vs_hammer", "mine", 0)
    assert "chat_template" not in unnamed.spec.described()["given"] and unnamed.asked is unnamed.checkpoints
    with pytest.raises(UserError, match=r"run 'mine': given\.chat_template: 'olmo' is neither a template \(.*own\)"):
        plan(raw(chat_template="olmo"))
    with pytest.raises(UserError, match=r"checkpoint-20 holds no chat template of its own; name another"):
        plan(raw(chat_template="own"))
    (path / "checkpoint-20" / "tokenizer_config.json").write_text('{"chat_template": "{{ a }}"}')
    first = plan(raw(chat_template="own")).run("scalpel_vs_hammer", "mine", 0)
    (path / "checkpoint-20" / "chat_template.jinja").write_text("{{ b }}")
    second = plan(raw(chat_template="own")).run("scalpel_vs_hammer", "mine", 0)
    assert first.asked.recipe["chat_template"] is None and first.asked.digest != second.asked.digest
    assert first.checkpoints.digest == second.checkpoints.digest


def test_the_template_of_a_model_on_the_hub_is_fetched_by_itself():
    given = {"kind": "hub", "repo": "a/b", "checkpoints": {29: "d" * 40, 58: "c" * 40}, "chat_template": "own"}
    run = plan({"runs": {"theirs": {"given": given}}}).run("scalpel_vs_hammer", "theirs", 0)
    fetched = run.asked.inputs["template"].recipe
    assert fetched == {
        "type": "model", "repo": "a/b", "revision": "c" * 40, "files": ["chat_template.jinja", "tokenizer_config.json"],
    }  # fmt: skip
    assert "template" not in run.checkpoints.inputs and "fetch/000058" in run.asked.inputs


# ---------------------------------------------------------------- gates, stages, queued jobs


def test_a_gate_is_waited_for_and_never_hashed():
    made = plan()
    base = made.run("scalpel_vs_hammer", "grpo", 42).base
    gated = made.registry.add("weight_change", "x", {"y": 1}, {"base": base}, gates={"audit": made.materials.toy()})
    plain = made.registry.add("weight_change", "x", {"y": 1}, {"base": base})
    assert gated.digest == plain.digest
    assert made.inputs(gated.digest) == [base.manifest, made.materials.toy().manifest]


def test_every_stage_with_gpus_has_a_cost():
    """A stage that reserves GPUs and is not known to the estimate would count as free."""
    assert {stage.cost for stage in STAGES.values() if stage.cost} == set(COSTS)
    for scale in ("laptop", "workstation", "gpu", "cluster"):
        for stage, held in plan({"scale": scale}).config.scale.resources.items():
            assert stage in STAGES, f"{scale}.yaml: resources.{stage}"
            assert STAGES[stage].cost or not held.gpus, f"{scale}.yaml: stage {stage} has GPUs and no cost function"


def test_every_stage_has_its_program():
    assert all((ROOT / "scripts" / f"{stage}.py").is_file() for stage in STAGES)


def test_a_queued_job_outlives_an_edited_config(tmp_path):
    old = plan({"runs": {"grpo": {"learning_rate": 2e-4}}}).run("scalpel_vs_hammer", "grpo", 42).checkpoints
    record_recipe(old, tmp_path)
    now = plan(root=tmp_path)
    assert old.digest not in now.steps
    assert now.inputs(old.digest) == [step.manifest for step in (old.inputs | old.gates).values()]
    with pytest.raises(UserError, match="no step has digest 000000000000"):
        now.inputs("000000000000")


def test_planning_is_light():
    """Neither torch nor pandas nor matplotlib is imported by what the Snakefile imports."""
    code = (
        "import sys; from pathlib import Path; from scalpel.config.load import load; from scalpel.plan import Plan;"
        "from scalpel.config.site import load_site; import slurm.executor;"
        "Plan(load({}, Path('workflow')), Path('workflow'));"
        "sys.exit(str([m for m in ('torch', 'pandas', 'matplotlib', 'lm_eval', 'pyarrow') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert not done.stderr.strip().strip("[]"), done.stderr


# ---------------------------------------------------------------- exhibits


def test_exhibits_may_show_runs_of_other_studies(tmp_path):
    other = with_file(tmp_path, "studies/none", str)
    study = {"title": "Other", "runs": {"mine": SFT}, "exhibits": {"kl": {"runs": ["mine", "scalpel_vs_hammer/grpo"]}}}
    (other / "studies" / "other.yaml").write_text(json.dumps(study))
    made = plan({"studies": ["scalpel_vs_hammer", "other"]}, workflow=other)
    assert [e.run for e in made.drawings["other", "kl"].entries] == ["mine", "scalpel_vs_hammer/grpo"]
    with pytest.raises(UserError, match="study 'scalpel_vs_hammer' is not in use"):
        plan({"studies": ["other"]}, workflow=other)


def test_an_exhibit_of_the_user_s_own_is_one_file_and_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "READS = ('kl',)\n\ndef table(results, options):\n    return results.read('kl', 'kl.parquet')\n"
    )
    own = with_file(tmp_path / "w", "studies/scalpel_vs_hammer.yaml", lambda t: t + "  mine: {kind: mine.py}\n")
    made = plan(root=tmp_path, workflow=own)
    assert made.drawings["scalpel_vs_hammer", "mine"].files == ("results/tables/scalpel_vs_hammer/mine.csv",)
    before = made.drawings["scalpel_vs_hammer", "mine"].digest
    (tmp_path / "mine.py").write_text("READS = ('kl',)\n\ndef table(results, options):\n    return None\n")
    assert plan(root=tmp_path, workflow=own).drawings["scalpel_vs_hammer", "mine"].digest != before


def test_unknown_exhibits_and_runs_are_named(tmp_path):
    def wrong(old, new):
        return with_file(tmp_path / new[:9].strip(), "studies/scalpel_vs_hammer.yaml", lambda t: t.replace(old, new))

    with pytest.raises(UserError, match="no exhibit is named 'weight_chang'; did you mean 'weight_change'"):
        plan(workflow=wrong("kind: weight_change", "kind: weight_chang"))
    with pytest.raises(UserError, match="'grop' is no run of study scalpel_vs_hammer; did you mean 'grpo'"):
        plan(workflow=wrong("runs: [grpo]", "runs: [grop]"))
    with pytest.raises(UserError, match=r"exhibits\.kl: unknown key 'nubmer'; did you mean 'number'"):
        plan(workflow=wrong("number: Figure 4", "nubmer: Figure 4"))
    shutil.rmtree(tmp_path)


# ---------------------------------------------------------------- as published


def test_the_paper_s_text_and_its_code_are_variants_of_the_cluster_scale():
    def of(name):
        raw = {"scale": "cluster", "as_published": name, "studies": ["scalpel_vs_hammer_full"]}
        made = plan(raw)
        return made, {n: made.run(FULL, n, 42) for n in ("grpo", "sft_3ep", "sft_frozen_mlp", "sft_qk_only")}

    made, runs = of("code")
    recipes = {name: run.spec.recipe for name, run in runs.items()}
    filters = {name: run.checkpoints.inputs["data"].recipe["filter"] for name, run in runs.items()}
    assert recipes["grpo"].questions_per_step * 28 == recipes["sft_3ep"].sequences_per_step == 448
    assert recipes["grpo"].top_k == 50 and recipes["grpo"].max_prompt_tokens == 512
    assert recipes["grpo"].system_message == SYSTEM_PROMPT and recipes["grpo"].format_weight == 0.2
    assert filters["grpo"]["max_tokens"] is None and filters["sft_3ep"]["max_tokens"] == 4096
    assert all(
        f["gold"] == "solution" and f["trace"] == "messages" and f["verified_by"] == "none" for f in filters.values()
    )
    assert recipes["sft_frozen_mlp"].trainable.freeze_mlp_layers == tuple(range(19, 26))
    assert recipes["sft_qk_only"].trainable.also_lm_head
    assert recipes["grpo"].answer_rule == "authors"
    assert recipes["sft_3ep"].loss_mean == "rank" and recipes["sft_3ep"].emulated_ranks == 7
    assert METHODS["sft"].steps_fed(recipes["sft_3ep"], 69132, 3) == 462  # the authors' last checkpoint
    evaluations = [step.recipe for step in made.steps.values() if step.stage == "evaluate"]
    assert all(recipe["answer_rule"] == "authors" for recipe in evaluations)
    (base,) = {e.step.inputs["base"].digest for e in made.entries[FULL] if e.stage == "evaluate" and e.run == "base"}
    assert "think" not in (made.steps[base].recipe["chat_template"] or "")

    made, runs = of("text")
    recipes = {name: run.spec.recipe for name, run in runs.items()}
    assert recipes["grpo"].questions_per_step * 28 == recipes["sft_3ep"].sequences_per_step == 112
    assert recipes["grpo"].format_weight == 0.1 and recipes["grpo"].system_message is None
    assert recipes["sft_frozen_mlp"].trainable.freeze_mlp_layers == tuple(range(20, 27))
    assert not recipes["sft_qk_only"].trainable.also_lm_head
    assert runs["grpo"].checkpoints.inputs["data"].recipe["filter"]["verified_by"] == "math_verify_and_llama"
    with pytest.raises(UserError, match="'code' says how scale cluster is to be, not laptop"):
        plan({"as_published": "code"})
    with pytest.raises(UserError, match="no published variant is named 'cod'; did you mean 'code'"):
        plan({"scale": "cluster", "as_published": "cod"})


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("grop", "did you mean 'results/train/grpo-{grpo}/manifest.json'?"),
        ("train/grpo", "did you mean 'results/train/grpo-{grpo}/manifest.json'?"),
        ("kl.pdf", "did you mean 'results/figures/scalpel_vs_hammer/kl.pdf'?"),
        ("figures/kll.pdf", "did you mean 'results/figures/scalpel_vs_hammer/kl.pdf'?"),
        ("./results/figures/scalpel_vs_hammer/kl.pdv", "did you mean 'results/figures/scalpel_vs_hammer/kl.pdf'?"),
        ("train", "train is a rule of many results; name one of its files, such as results/train/"),
        ("zzz", "zzz is no result of this plan; `make status` lists what there is."),
    ],
)
def test_a_target_that_nothing_makes_gets_the_nearest_name(word, sentence, tmp_path):
    plan = Plan(load({}, WORKFLOW), WORKFLOW, tmp_path)
    grpo = plan.run("scalpel_vs_hammer", "grpo", 42).checkpoints
    with pytest.raises(UserError) as caught:
        plan.refuse_unknown([word])
    assert sentence.format(grpo=grpo.digest) in str(caught.value)
    if "/" in word:
        with pytest.raises(UserError) as caught:
            plan.refuse_unknown([], [word])
        assert sentence.format(grpo=grpo.digest) in str(caught.value), "-R names it as a target does"
    fine = [
        "all",
        grpo.manifest,
        f"./{grpo.manifest}",
        str(tmp_path / grpo.manifest),
        *plan.targets("scalpel_vs_hammer"),
    ]
    plan.refuse_unknown(fine, ["train", "all", grpo.manifest], ["train", "figure", "all"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (([], ["results/train/grop"]), "is no rule and no result of this plan; did you mean 'results/train/grpo-"),
        (([], ["results/train/grop-000000000000/manifest.json"]), "did you mean 'results/train/grpo-"),
        (([], ["results/kl/sft_3pe/manifest.json"]), "did you mean 'results/kl/sft_3ep.math_500-"),
        (([], ["grop"]), "grop is no rule and no result of this plan; did you mean 'results/train/grpo-"),
        (([], ["trian"]), "did you mean 'train'?"),
        (([], ["zzz"]), "zzz is no rule and no result of this plan; there are audit, base,"),
        (([], [], ["trian"]), "--allowed-rules: trian is no rule; did you mean 'train'?"),
        (([], [], ["results/train/grpo"]), "--allowed-rules: results/train/grpo is no rule; there are all, audit,"),
    ],
)
def test_rules_and_forced_targets_get_the_nearest_name(words, sentence, tmp_path):
    plan = Plan(load({}, WORKFLOW), WORKFLOW, tmp_path)
    with pytest.raises(UserError) as caught:
        plan.refuse_unknown(*words)
    assert sentence in str(caught.value)
