"""What is added to Snakemake's SLURM executor, without a cluster; with one: make test-slurm."""

import subprocess
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin
import snakemake_executor_plugin_slurm_jobstep as jobstep
from snakemake_interface_executor_plugins import utils

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
    names = ("__post_init__", "run_job", "check_active_jobs", "format_job_exec", "get_python_executable")
    changed = [(plugin, "query_job_status"), (plugin, "set_gres_string"), (utils, "format_cli_value")]
    changed += [*((plugin.Executor, name) for name in names), (jobstep.Executor, "get_python_executable")]
    before = [(where, name, getattr(where, name)) for where, name in changed]
    executor.extend(None, Site())
    executor.extend(None, Site())  # as when the Snakefile is read twice
    yield plugin
    for where, name, value in before:
        setattr(where, name, value)
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
    lines = f"7|rule_train_wildcards_grpo_1|{other}\n8|rule_train_wildcards_grpo_1|{tmp_path}/link\n9|(null)|{here}\n"
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


HOSTILE = """/a/it's a "b";touch x #1 $(touch y) `touch z` {q} \\ $HOME"""


def test_a_path_is_one_word_of_a_job_s_command_line(extended, monkeypatch, tmp_path):
    """As the plugin writes it into sbatch's --wrap, whose text another shell reads; and as srun's."""
    monkeypatch.setattr(executor.sys, "executable", f"{HOSTILE}/python")
    settings = SimpleNamespace(pass_command_as_script=False)
    job = SimpleNamespace(workflow=SimpleNamespace(executor_settings=settings))
    words = [f"{HOSTILE}/python", "--snakefile", f"{HOSTILE}/Snakefile", "--wait-for-files", HOSTILE, "plain"]
    line = " ".join(
        (
            extended.Executor.get_python_executable(job),
            utils.format_cli_arg("--snakefile", words[2]),
            utils.format_cli_arg("--wait-for-files", words[4:]),
        )
    )
    assert jobstep.Executor.get_python_executable(job) == extended.Executor.get_python_executable(job)
    monkeypatch.setitem(extended.Executor.old, "format_job_exec", lambda self, job: f"printf '%s\\0' {line}")

    def said(command: str) -> list[str]:
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert not done.stderr and not list(tmp_path.iterdir()), done
        return done.stdout.split("\0")[:-1]

    wrapped = extended.Executor.format_job_exec(job, None).replace('"', '\\"')
    assert said(f'sh -c "{wrapped}"') == words
    settings.pass_command_as_script = True
    assert said(extended.Executor.format_job_exec(job, None)) == words


@pytest.mark.parametrize("scale", ["laptop", "workstation", "gpu", "cluster"])
def test_frozen_config_plans_the_same(scale, tmp_path):
    config = load(read_yaml(ROOT / "config.yaml") | {"scale": scale}, ROOT / "workflow")
    (tmp_path / "frozen.json").write_text(record_config(config))
    again = recorded_config(tmp_path / "frozen.json")
    assert again == config
    assert Plan(again, ROOT / "workflow").steps.keys() == Plan(config, ROOT / "workflow").steps.keys()
    (tmp_path / "frozen.json").write_text(record_config(config)[:-100])
    with pytest.raises(UserError, match="start snakemake again"):
        recorded_config(tmp_path / "frozen.json")
