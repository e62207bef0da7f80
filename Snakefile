"""Scalpel: what do SFT and RL each do to a language model? The table of contents of the experiment."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from scalpel.config import load, load_site, thaw
from scalpel.errors import UserError
from scalpel.plan import Plan
from scalpel.preflight import site_refusals
from workflow.slurm import teach

# A job that was submitted reads the configuration its plan was made from, whatever config.yaml says by now.
FROZEN = None if workflow.is_main_process else os.environ.get("SCALPEL_CONFIG")
if not FROZEN:

    configfile: "config.yaml"


WORKFLOW = Path(workflow.basedir) / "workflow"
try:
    plan = Plan(thaw(FROZEN) if FROZEN else load(config, WORKFLOW), WORKFLOW)
    site = load_site(Path(workflow.basedir) / "slurm" / "site.yaml", os.environ)
except UserError as error:
    raise WorkflowError(str(error)) from None
teach(plan, site, site_refusals)


wildcard_constraints:
    name=r"[a-zA-Z0-9_.]+",
    digest="[0-9a-f]{12}",
    study="|".join(plan.config.studies),


onstart:
    os.environ["SCALPEL_CONFIG"] = str(plan.freeze())


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
