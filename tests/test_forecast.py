"""What is left of a DAG, from measured costs: a clock that is turned by hand, and Snakemake itself."""

import json
import re

import pytest

from scalpel.launch.forecast import Forecast, Work, measured_costs
from tests.test_repair import Lab
from tests.test_workflow import snakemake

JOBS = [Work(1, "toy"), Work(2, "train by sft", (1,)), Work(3, "train by sft", (1,)), Work(4, "kl", (2, 3))]
COSTS = {"toy": [10.0], "train by sft": [100.0, 60.0, 80.0], "kl": [30.0]}


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize(("cores", "seconds"), [(1, 10 + 80 + 80 + 30), (2, 120), (8, 120), (None, 120)])
def test_what_is_left_is_the_work_shared_or_the_longest_chain(cores, seconds):
    assert Forecast(JOBS, COSTS, cores).left() == (seconds, [])
    wide = [job._replace(threads=4) for job in JOBS]
    assert Forecast(wide, COSTS, 1).left()[0] == 200, "no job holds more than there are"


def test_running_jobs_count_by_what_is_left_of_them_and_finished_ones_are_measured():
    clock = Clock()
    forecast = Forecast(JOBS, {"train by sft": [80.0], "kl": [30.0]}, 2, clock)
    assert forecast.left() == (110, ["toy"])
    assert forecast.line() == "0 of 4 jobs done in 0:00, at least 1:50 left; not measured yet: toy"
    forecast.started(1)
    clock.time = 10.0
    forecast.finished(1)
    assert forecast.line() == "1 of 4 jobs done in 0:10, about 1:50 left"
    forecast.started(2)
    forecast.started(3)
    clock.time = 60.0
    assert forecast.left() == (30 + 30, [])
    clock.time = 120.0  # it takes longer than it was measured
    assert forecast.left() == (30, [])
    forecast.finished(2)
    assert forecast.measured["train by sft"] == [80.0, 110.0]
    forecast.finished(3)
    forecast.started(4)
    clock.time = 150.0
    forecast.finished(4)
    assert forecast.line() == "4 of 4 jobs done in 2:30"


def test_costs_are_those_of_finished_results_by_stage_and_method(tmp_path):
    for name, seconds, finished in (("a", 3, True), ("b", 5, True), ("c", 700, False)):
        directory = tmp_path / "results" / "train" / f"{name}-0"
        directory.mkdir(parents=True)
        (directory / "recipe.json").write_text(json.dumps({"recipe": {"method": "sft"}}))
        (directory / "provenance.json").write_text(json.dumps({"seconds": seconds}))
        if finished:
            (directory / "manifest.json").write_text("{}")
    (tmp_path / "results" / "train" / "a-0" / "provenance.json").write_text("{")
    assert measured_costs(tmp_path) == {"train by sft": [5.0]}


@pytest.mark.slow
def test_snakemake_s_own_log_carries_the_line_and_quiet_is_quiet(tmp_path):
    lab = Lab(tmp_path)
    lab.write()
    plan = lab.plan()
    questions = [step.manifest for step in plan.steps.values() if step.stage == "questions"]
    output = snakemake("--cores", "2", *questions[:2], cwd=tmp_path)
    lines = re.findall(r"^(\d) of 3 jobs done in 0:\d\d(.*)$", output, re.MULTILINE)
    assert [done for done, _ in lines] == ["1", "2", "3"], output
    assert "not measured yet: questions" in lines[0][1] and "left" in lines[1][1] and lines[2][1] == ""
    logged = next((tmp_path / ".snakemake" / "log").glob("*.log")).read_text()
    assert "2 of 3 jobs done" in logged
    assert "jobs done" not in snakemake("--cores", "2", "--quiet", "progress", "--", questions[2], cwd=tmp_path)
