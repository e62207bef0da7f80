"""What is added to Snakemake's SLURM executor, without a cluster; with one: make test-slurm."""

from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin

from scalpel.config.load import load, read_yaml, record_config, recorded_config
from scalpel.config.site import Site
from scalpel.errors import UserError
from scalpel.plan import Plan
from slurm import executor
from slurm.executor import GRACE_SECONDS, settled, waiting_job

from .test_workflow import ROOT


@pytest.fixture
def extended():
    """The plugin with our changes, which are taken back."""
    functions = {name: getattr(plugin, name) for name in ("query_job_status", "set_gres_string")}
    methods = {name: getattr(plugin.Executor, name) for name in ("__post_init__", "run_job", "check_active_jobs")}
    executor.extend(None, Site())
    executor.extend(None, Site())  # as when the Snakefile is read twice
    yield plugin
    for name, function in functions.items():
        setattr(plugin, name, function)
    for name, method in methods.items():
        setattr(plugin.Executor, name, method)
    del plugin.Executor.old


def test_states_that_the_plugin_waits_for_without_end():
    active, since = {"1", "2", "3", "4", "5"}, {}
    states = {"1": "CANCELLED by 0", "2": "PREEMPTED", "3": "RUNNING", "4": "OUT_OF_MEMORY", "9": "FAILED"}
    found = settled(states, active, since, 100.0)
    assert found == {"1": "CANCELLED", "2": "PREEMPTED", "3": "RUNNING", "4": "OUT_OF_MEMORY", "9": "FAILED"}
    assert since == {"2": 100.0, "5": 100.0}  # preempted, and unknown to SLURM
    found = settled(states, active, since, 100.0 + GRACE_SECONDS)
    assert found["2"] == "FAILED" and found["5"] == "COMPLETED"  # its result is there or not
    assert settled(states | {"2": "PENDING"}, active, since, 300.0)["2"] == "PENDING" and "2" not in since


def test_a_waiting_job_is_known_by_its_folder_and_comment(tmp_path, monkeypatch):
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    lines = f"7|{other}|rule_train_wildcards_grpo_1\n8|{tmp_path}/link|rule_train_wildcards_grpo_1\n9|{here}|(null)\n"
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nprintf '%s' '{lines}'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert waiting_job("rule_train_wildcards_grpo_1", str(here)) == "8"
    assert waiting_job("rule_train_wildcards_grpo_2", str(here)) is None


def test_a_job_of_several_nodes_asks_for_all_gpus(extended):
    job = SimpleNamespace(resources={"gpu": 8, "gpu_model": "h100", "nodes": 1})
    job.resources = type("Resources", (dict,), {"__getattr__": dict.__getitem__})(job.resources)
    assert extended.set_gres_string(job) == " --gpus=h100:8"
    job.resources["span_nodes"] = 3
    assert extended.set_gres_string(job) == " --nodes=3 --gpus=h100:24"
    job.resources.update(gpu=None, gpu_model=None)
    assert extended.set_gres_string(job) == " --nodes=3"


@pytest.mark.parametrize("scale", ["laptop", "gpu", "cluster"])
def test_frozen_config_plans_the_same(scale, tmp_path):
    config = load(read_yaml(ROOT / "config.yaml") | {"scale": scale}, ROOT / "workflow")
    (tmp_path / "frozen.json").write_text(record_config(config))
    again = recorded_config(tmp_path / "frozen.json")
    assert again == config
    assert Plan(again, ROOT / "workflow").steps.keys() == Plan(config, ROOT / "workflow").steps.keys()
    (tmp_path / "frozen.json").write_text(record_config(config)[:-100])
    with pytest.raises(UserError, match="start snakemake again"):
        recorded_config(tmp_path / "frozen.json")
