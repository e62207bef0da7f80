"""Whether SLURM would take a plan's jobs, asked before anything is submitted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from scalpel.config.scale import StageResources
from scalpel.config.site import Site
from scalpel.launch.attempts import asked
from scalpel.launch.slurm import Partition, ask, partitions
from scalpel.plan import Plan
from scalpel.stages import STAGES

COMMAND_SECONDS = 30.0  # that sbatch may take


def job_shapes(
    plan: Plan, site: Site, attempt: int = 1, there: Mapping[str, Partition] | None = None
) -> dict[tuple[int, int, int, int, int], list[str]]:
    """(threads, mem_mb, runtime, gpus, nodes) -> the stages of unfinished steps that ask for it at this attempt; gpus
    of each node. there: SLURM's partitions, which bound what later attempts ask for."""
    shapes: dict[tuple[int, int, int, int, int], list[str]] = {}
    for stage in dict.fromkeys(
        step.stage for step in plan.missing() if not STAGES[step.stage].local
    ):  # local ones run here
        held: StageResources = asked(plan.resources_of_stage(stage), stage, attempt, site, there or {})
        shape = (held.threads, held.mem_mb, held.runtime, held.gpus, plan.nodes_of_stage(stage))
        shapes.setdefault(shape, []).append(stage)
    return shapes


SITE, SCALE = "of slurm/site.yaml", "of the stage in the scale's resources"
# SLURM's words -> what to look at, for jobs without and with GPUs. The first that fits counts.
REFUSALS = [
    (r"configuration source|slurm controller|no answer", "SLURM_CONF: no controller is reached", None),
    (r"invalid account", f"`account` and `partition` {SITE}", f"`account` and `gpu_partition` {SITE}"),
    (r"invalid partition|no partition", f"`partition` {SITE}", f"`gpu_partition` {SITE}"),
    (r"qos", f"`qos` {SITE}", None),
    (r"feature", f"`constraint` {SITE}", None),
    (r"generic resource|gres", f"`gpu_model` and `gpu_partition` {SITE}", None),
    (r"permi|access", f"`account` and `partition` {SITE}", f"`account` and `gpu_partition` {SITE}"),
    (r"time limit", f"`runtime` {SCALE}", None),
    (r"memory", f"`mem_mb` {SCALE}", None),
    (
        r"node configuration|processors|cpu count",
        f"`partition` {SITE}, and `mem_mb` and `threads` {SCALE}",
        f"`gpu_model`, `gpu_partition` and `constraint` {SITE}, and `gpus`, `mem_mb` and `threads` {SCALE}",
    ),
]


def site_refusals(plan: Plan, site: Site, attempt: int = 1) -> list[str]:
    """What SLURM would not take of the plan's unfinished jobs: one sentence each, with its own words; empty: all fine.

    attempt: beyond the first one, of jobs that ask for more than at first and nothing else. Nothing is submitted
    (sbatch --test-only). A time limit above the partition's is told, too: many clusters accept such a job and never
    start it.
    """
    if not shutil.which("sbatch"):
        return ["sbatch is not on PATH; run this on a login node of the cluster."]
    refused: dict[tuple[str, str, str], list[str]] = {}
    there = partitions()
    before = job_shapes(plan, site) if attempt > 1 else {}
    for shape, stages in job_shapes(plan, site, attempt, there).items():
        if shape in before:
            continue
        threads, mem_mb, runtime, count, nodes = shape
        message = sbatch_complaint(site, *shape)
        name, limit, _ = there.get((site.gpu_partition if count else site.partition) or "", Partition())
        if message and re.search("node configuration is not available", message) and nodes_out(name):
            continue  # it would take the job and let it wait for those nodes; if not, sbatch says so
        if message:
            fitting = ((a, b or a) for pattern, a, b in REFUSALS if re.search(pattern, message, re.IGNORECASE))
            what = next(fitting, (f"the fields {SITE}",) * 2)[bool(count)]
        elif limit and runtime * 60 > limit:
            what, message = f"`runtime` {SCALE}", f"partition {name} ends jobs after {limit / 60:.0f} min"
        else:
            continue
        many = f"{nodes} nodes of " if nodes > 1 else ""
        shown = f" ({many}{count} GPUs, {threads} CPUs, {mem_mb} MB, {runtime} min)"
        if attempt > 1:
            what, shown = f"`max_runtime` and `max_mem_mb` {SITE}", f"{shown} when they are tried for the last time"
        elif SCALE not in what:
            shown = ""
        refused.setdefault((what, message, shown), []).extend(stages)
    given = ", ".join(f"{field} {value}" for field, value in site.model_dump().items() if value) or "nothing"
    return [
        f"SLURM does not take the jobs of {', '.join(stages)}{shown}; look at {what}. It says: {message}. "
        f"(slurm/site.yaml sets {given}.)"
        for (what, message, shown), stages in refused.items()
    ]


def sbatch_complaint(site: Site, threads: int, mem_mb: int, runtime: int, count: int, nodes: int) -> str | None:
    """SLURM's complaint about such a job, None when it would take it."""
    options = {
        "account": site.account,
        "partition": site.gpu_partition if count else site.partition,
        "qos": site.qos,
        "constraint": site.constraint if count else None,
        "gpus": (f"{site.gpu_model}:" if site.gpu_model else "") + str(count * nodes) if count else None,
        "time": runtime,
        "mem": f"{mem_mb}M",
        "cpus-per-task": threads,
        "nodes": nodes,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    try:
        done = subprocess.run(
            ["sbatch", "--test-only", *words, "--wrap", "true"],
            capture_output=True, text=True, timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {COMMAND_SECONDS:.0f} s"
    except OSError as error:
        return f"sbatch does not start ({error.strerror})"
    if done.returncode == 0:
        return None
    said = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(said)) or f"exit status {done.returncode}"


def nodes_out(partition: str) -> bool:
    """Whether nodes of the partition are down or drained: --test-only does not count them as there."""
    where = ["--partition", partition] if partition else []
    return bool(ask("sinfo", "--noheader", *where, "--states", "down,drain,maint,fail", "--format", "%N"))
