"""Scalpel: what do SFT and RL each do to a language model? The table of contents of the experiment."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from scalpel.config.load import load, read_yaml, recorded_config
from scalpel.config.site import load_site
from scalpel.errors import UserError
from scalpel.launch.command_line import asked
from scalpel.launch.forecast import tell_forecast
from scalpel.launch.retries import final_errors_are_final
from scalpel.plan import Plan
from scalpel.plan.feasible import refuse_what_cannot_run
from scalpel.plan.sizes import refuse_a_small_disk
from scalpel.retire import refuse_retired
from scalpel.stages import REPORT, STAGES
from slurm.executor import extend

# A job that was submitted reads the configuration its plan was made from, whatever config.yaml says by now.
RECORDED = None if workflow.is_main_process else os.environ.get("SCALPEL_CONFIG")
if not RECORDED:
    try:  # Snakemake's own reader takes the last of two equal keys, and hangs on nested aliases
        if Path("config.yaml").is_file():
            read_yaml(Path("config.yaml"))
    except UserError as error:
        raise WorkflowError(str(error)) from None

    configfile: "config.yaml"


WORKFLOW = Path(workflow.basedir) / "workflow"
try:
    plan = Plan(recorded_config(RECORDED) if RECORDED else load(config, WORKFLOW), WORKFLOW)
    if not RECORDED:
        refuse_what_cannot_run(plan)
    if workflow.is_main_process:
        words = asked()
        plan.refuse_unknown(*words)
        refuse_retired(plan, words.targets)
    site = load_site(Path(workflow.basedir) / "slurm" / "site.yaml", os.environ)
except UserError as error:
    raise WorkflowError(str(error)) from None
extend(plan, site)
final_errors_are_final()


wildcard_constraints:
    name=r"[a-zA-Z0-9_.]+",
    digest="[0-9a-f]{12}",
    study="|".join(plan.config.studies),


onstart:
    try:
        refuse_a_small_disk(plan, {job.wildcards_dict.get("digest") for job in workflow.dag.needrun_jobs()})
        os.environ.update(SCALPEL_CONFIG=str(plan.record()))
        tell_forecast(workflow, plan)
    except UserError as error:
        raise WorkflowError(str(error)) from None


rule all:
    default_target: True
    input:
        [target for study in plan.config.studies for target in plan.targets(study)],


include: "workflow/rules/common.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/exhibits.smk"
