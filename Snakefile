"""Scalpel: what do SFT and RL each do to a language model? The table of contents of the experiment."""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from scalpel.config import STAGES, load
from scalpel.errors import UserError
from scalpel.plan import Plan


configfile: "config.yaml"


WORKFLOW = Path(workflow.basedir) / "workflow"
try:
    plan = Plan(load(config, WORKFLOW), WORKFLOW)
except UserError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    name=r"[a-zA-Z0-9_.]+",
    digest="[0-9a-f]{12}",
    study="|".join(plan.config.studies),


onstart:
    plan.freeze()


rule all:
    default_target: True
    input:
        [target for study in plan.config.studies for target in plan.targets(study)],


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyze.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"
