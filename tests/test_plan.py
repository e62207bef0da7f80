"""The plan: digests that hold still, and changes that reach exactly what depends on them."""

import json
from pathlib import Path

import pytest

from scalpel.artifact import canonical, freeze
from scalpel.config import load
from scalpel.errors import UserError
from scalpel.plan import Plan

WORKFLOW = Path(__file__).resolve().parent.parent / "workflow"


def plan(raw=None, root=Path(".")) -> Plan:
    return Plan(load(raw or {}, WORKFLOW), WORKFLOW, root)


def changed(raw) -> set[str]:
    """Stage/run of the steps that a change makes new."""
    before, after = plan(), plan(raw)
    return {f"{s.stage}/{s.name.split('.')[0]}" for digest, s in after.steps.items() if digest not in before.steps}


def test_golden_digests():
    """Names of real results: if one changes without a stage's version being raised, old results are lost."""
    steps = {f"{s.stage}/{s.name}": s.digest for s in plan({"scale": "cluster"}).steps.values()}
    golden = json.loads((Path(__file__).parent / "golden_digests.json").read_text())
    assert {name: steps.get(name) for name in golden} == golden


def test_a_learning_rate_reaches_its_run_alone():
    new = changed({"runs": {"grpo": {"learning_rate": 2e-4}}})
    assert new == {"train/grpo", "evaluate/grpo", "kl/grpo", "weight_change/grpo"}


def test_evaluation_options_leave_training_alone():
    new = changed({"overrides": {"evaluation": {"temperature": 0.7}}})
    assert {name.split("/")[0] for name in new} == {"evaluate"}


def test_a_figure_option_reaches_no_step(tmp_path):
    study = (WORKFLOW / "studies" / "scalpel_vs_hammer.yaml").read_text()
    copy = tmp_path / "workflow"
    for folder in ("studies", "scales", "published"):
        (copy / folder).mkdir(parents=True)
        for path in (WORKFLOW / folder).glob("*.yaml"):
            (copy / folder / path.name).write_text(path.read_text())
    (copy / "studies" / "scalpel_vs_hammer.yaml").write_text(study.replace("kl: {}", "kl: {title: Other}"))
    before, after = plan(), Plan(load({}, copy), copy)
    assert before.steps.keys() == after.steps.keys()
    differ = {n for (s, n), d in after.drawings.items() if d.digest != before.drawings[s, n].digest}
    assert differ == {"kl", "report"}


def test_settings_are_not_hashed():
    settings = {"train_settings": {"sequences_per_device": 2}, "resources": {"train": {"mem_mb": 9}}}
    assert not changed({"overrides": settings})


def test_a_source_file_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / f"{name}.parquet").write_text(content)
    digests = [
        plan({"overrides": {"source": {"kind": "parquet", "path": str(tmp_path / f"{name}.parquet")}}}).data.digest
        for name in "abc"
    ]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(UserError, match=r"absent\.parquet does not exist"):
        plan({"overrides": {"source": {"kind": "parquet", "path": str(tmp_path / "absent.parquet")}}})


def test_a_queued_job_outlives_an_edited_config(tmp_path):
    old = plan({"runs": {"grpo": {"learning_rate": 2e-4}}}).train["grpo"]
    freeze(old, tmp_path)
    now = plan(root=tmp_path)
    assert old.digest not in now.steps
    assert now.inputs(old.digest) == [f"{step.directory}/manifest.json" for step in old.inputs.values()]
    with pytest.raises(UserError, match="no step has digest 000000000000"):
        now.inputs("000000000000")


def test_recipes_hold_no_path_and_no_circumstance():
    for scale in ("laptop", "gpu", "cluster"):
        for step in plan({"scale": scale}).steps.values():
            text = canonical(step.recipe)
            assert not any(word in text for word in ("threads", "sequences_per_device", "results/", "mem_mb"))
