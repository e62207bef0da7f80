"""Whether a plan can run here, found out before anything is spent: one sentence each, with what to do.

`findings` is what `make preflight` prints.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from scalpel.artifact.files import ROOT
from scalpel.config.site import Site
from scalpel.cost.estimate import Cost
from scalpel.launch.attempts import LAST
from scalpel.plan import Plan
from scalpel.preflight.finding import ERROR, OK, WARNING, Finding
from scalpel.preflight.gpus import gpu_stages, gpus_of_this_node, layout
from scalpel.preflight.packages import environment
from scalpel.preflight.slurm import job_shapes, site_refusals
from scalpel.preflight.supplies import disk, reachable, time_limits


def findings(plan: Plan, cost: Cost | None, site: Site, slurm: bool | None) -> Iterator[Finding]:
    """Everything that is checked; `slurm` None: where sbatch is on PATH and the plan has GPU jobs.

    cost: of the same plan; None when it could not be estimated.
    """
    on_gpus = bool(gpu_stages(plan))
    yield environment(on_gpus, ROOT / "envs")
    yield from overlap(plan)
    if cost:
        yield from disk(plan.root, cost)
        yield from time_limits(cost)
    yield reachable(plan, os.environ)
    if on_gpus:
        yield from layout(plan)
        yield gpus_of_this_node(most=max(plan.resources_of_stage(stage).gpus for stage in gpu_stages(plan)))
    if slurm or (slurm is None and on_gpus and shutil.which("sbatch")):
        refusals = site_refusals(plan, site)
        for sentence in refusals:
            yield Finding("SLURM", ERROR, sentence)
        if not refusals:
            shapes = len(job_shapes(plan, site))
            yield Finding("SLURM", OK, f"sbatch --test-only takes all {shapes} kinds of job of the plan.")
            for sentence in site_refusals(plan, site, LAST):
                yield Finding("SLURM", WARNING, sentence)
    elif on_gpus:
        why = "--no-slurm was given" if slurm is False else "sbatch is not on PATH; run this on the login node"
        yield Finding("SLURM", WARNING, f"Not asked whether SLURM takes the jobs: {why}.")


def overlap(plan: Plan) -> Iterator[Finding]:
    """Question sets that are asked and that the filter does not keep out of the training rows."""
    for study, config in plan.config.studies.items():
        setting = config.setting
        guard = plan.config.scale.datasets[setting.dataset].guard
        guard = setting.guard if guard is None else guard
        asked = {task.questions or name for name, task in setting.evaluation.tasks.items()} - set(guard)
        # What is drawn from the toy world overlaps with no row of it.
        asked = {name for name in asked if getattr(plan.config.scale.questions[name], "count", None) is None}
        if asked:
            yield Finding(
                "overlap",
                WARNING,
                f"Study {study} asks {', '.join(sorted(asked))}, which the training rows are not compared with: a row "
                "that holds one of their questions is trained on. Naming them in `guard` filters and trains again.",
            )
