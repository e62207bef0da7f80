"""Scalpel: what do SFT and RL each do to a language model? The table of contents of the experiment."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from scalpel.config.load import load, recorded_config
from scalpel.config.site import load_site
from scalpel.errors import UserError
from scalpel.plan import Plan
from scalpel.stages import REPORT, STAGES
from slurm.executor import extend

# A job that was submitted reads the configuration its plan was made from, whatever config.yaml says by now.
RECORDED = None if workflow.is_main_process else os.environ.get("SCALPEL_CONFIG")
if not RECORDED:

    configfile: "config.yaml"


WORKFLOW = Path(workflow.basedir) / "workflow"
try:
    plan = Plan(recorded_config(RECORDED) if RECORDED else load(config, WORKFLOW), WORKFLOW)
    site = load_site(Path(workflow.basedir) / "slurm" / "site.yaml", os.environ)
except UserError as error:
    raise WorkflowError(str(error)) from None
extend(plan, site)


wildcard_constraints:
    name=r"[a-zA-Z0-9_.]+",
    digest="[0-9a-f]{12}",
    study="|".join(plan.config.studies),


onstart:
    try:
        os.environ["SCALPEL_CONFIG"] = str(plan.record())
    except UserError as error:
        raise WorkflowError(str(error)) from None


rule all:
    default_target: True
    input:
        [target for study in plan.config.studies for target in plan.targets(study)],


include: "workflow/rules/common.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/exhibits.smk"
