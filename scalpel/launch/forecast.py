"""When the whole DAG will be done, from measured costs: a plain line after each finished job.

A job costs what jobs of its kind took: the median of finished results (provenance.json) and of this start's own jobs.
What is left is the longer of two: all remaining work shared by all cores, and the longest chain of jobs that wait for
each other. Snakemake tells what starts and ends through its log events, those that logger plugins get.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scalpel.artifact.files import MANIFEST, PROVENANCE, RECIPE, RESULTS
from scalpel.progress import clock
from scalpel.stages import STAGES

if TYPE_CHECKING:
    from snakemake.jobs import Job
    from snakemake.workflow import Workflow

    from scalpel.plan import Plan

NAMED = 4  # kinds without a measured cost that a line names


class Work(NamedTuple):
    """One job. kind: jobs of one kind cost alike; needs: keys of the jobs it waits for; threads: cores it holds."""

    key: int
    kind: str
    needs: tuple[int, ...] = ()
    threads: int = 1


class Forecast:
    """What is left of the jobs of one start. cores: that they share; None: as many as there are jobs.

    measured: kind -> seconds that such jobs took before. now: a clock in seconds.
    """

    def __init__(
        self, jobs: Iterable[Work], measured: dict[str, list[float]], cores: int | None,
        now: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.jobs = {job.key: job for job in jobs}
        self.measured = {kind: list(seconds) for kind, seconds in measured.items()}
        self.cores, self.now, self.began = cores, now, now()
        self.running: dict[int, float] = {}
        self.done: set[int] = set()
        graph = {key: [need for need in job.needs if need in self.jobs] for key, job in self.jobs.items()}
        self.order = list(TopologicalSorter(graph).static_order())

    def started(self, key: int) -> None:
        self.running[key] = self.now()

    def finished(self, key: int) -> None:
        if key in self.running and key in self.jobs:
            self.measured.setdefault(self.jobs[key].kind, []).append(self.now() - self.running[key])
        self.running.pop(key, None)
        self.done.add(key)

    def cost(self, job: Work) -> float | None:
        """Seconds that are left of a job; None when none of its kind was measured."""
        seconds = self.measured.get(job.kind)
        if not seconds:
            return None
        spent = self.now() - self.running[job.key] if job.key in self.running else 0.0
        return max(0.0, statistics.median(seconds) - spent)

    def left(self) -> tuple[float, list[str]]:
        """(seconds until all is done, kinds of remaining jobs without a measured cost, which count nothing)."""
        work, unknown = 0.0, []
        chain: dict[int, float] = {}
        for key in self.order:
            job = self.jobs[key]
            before = max((chain[need] for need in job.needs if need in chain), default=0.0)
            if key in self.done:
                chain[key] = before
                continue
            cost = self.cost(job)
            if cost is None:
                unknown.append(job.kind)
            chain[key] = before + (cost or 0.0)
            work += (cost or 0.0) * min(job.threads, self.cores or job.threads)
        shared = work / self.cores if self.cores else 0.0
        return max([shared, *chain.values()]), sorted(set(unknown))

    def line(self) -> str:
        """``12 of 96 jobs done in 3:10, about 14:05 left``"""
        seconds, unknown = self.left()
        text = f"{len(self.done & self.jobs.keys())} of {len(self.jobs)} jobs done in {clock(self.now() - self.began)}"
        if len(self.done) >= len(self.jobs):
            return text
        remaining = {job.kind for key, job in self.jobs.items() if key not in self.done}
        text += f", {'at least' if unknown else 'about'} {clock(seconds)} left" if remaining - set(unknown) else ""
        if unknown:
            more = " and others" if len(unknown) > NAMED else ""
            text += f"; not measured yet: {', '.join(unknown[:NAMED])}{more}"
        return text


def kind_of(stage: str, method: str | None = None) -> str:
    """Jobs of a stage cost alike; training runs as those of their method."""
    return f"{stage} by {method}" if method else stage


def measured_costs(root: Path) -> dict[str, list[float]]:
    """Kind -> seconds that the finished results below results/ took."""
    found: dict[str, list[float]] = {}
    for stage in STAGES:
        for path in (root / RESULTS / stage).glob(f"*/{PROVENANCE}"):
            try:
                if path.with_name(MANIFEST).is_file():
                    method = json.loads(path.with_name(RECIPE).read_text())["recipe"].get("method")
                    seconds = float(json.loads(path.read_text())["seconds"])
                    found.setdefault(kind_of(stage, method), []).append(seconds)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # damaged: `make verify` says so
    return found


class Teller(logging.Handler):
    """Follows Snakemake's log events, and has the forecast's line logged after each finished job."""

    def __init__(self, forecast: Forecast, log: logging.Logger):
        super().__init__()
        self.forecast, self.log = forecast, log

    def emit(self, record: Any) -> None:  # a LogRecord with what Snakemake adds to it
        from snakemake.settings.enums import Quietness
        from snakemake_interface_logger_plugins.common import LogEvent

        try:
            event = getattr(record, "event", None)
            if event == LogEvent.JOB_STARTED:
                for key in record.jobs:
                    self.forecast.started(key)
            elif event == LogEvent.JOB_FINISHED:
                self.forecast.finished(record.job_id)
            elif event == LogEvent.PROGRESS:
                self.log.info(self.forecast.line(), extra={"quietness": Quietness.PROGRESS})
        except Exception:
            self.handleError(record)


def tell_forecast(workflow: Workflow, plan: Plan) -> None:
    """Follow the jobs of a Snakemake workflow that is about to start."""
    from snakemake.logging import logger

    def kind(job: Job) -> str:
        step = plan.steps.get(job.wildcards_dict.get("digest"))
        return kind_of(job.rule.name, step.recipe.get("method") if step and step.stage == "train" else None)

    dag = workflow.dag
    jobs = [job for job in dag.needrun_jobs() if job.rule.name != "all"]
    works = [
        Work(job.jobid, kind(job), tuple(other.jobid for other in dag.dependencies[job]), int(job.threads))
        for job in jobs
    ]
    cores = workflow.global_resources["_cores"].value
    logger.addHandler(Teller(Forecast(works, measured_costs(plan.root), cores), logger))
