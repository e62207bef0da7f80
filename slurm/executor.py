"""What Snakemake's SLURM executor (plugin 2.8) does not do by itself, added when the Snakefile is read.

* A job that an earlier start submitted and that still waits or runs is adopted, not submitted again. It is known
  by its working directory and its comment, which names rule and wildcards, digest included.
* Jobs that were preempted with PreemptMode=CANCEL, cancelled (``CANCELLED by 0``), lost with a node that SLURM
  does not requeue, or forgotten by SLURM count as ended: by themselves they are waited for without end.
* Nodes whose GPUs failed the check at a job's start are excluded from later submissions.
* Before the first submission SLURM is asked whether it would take the plan's jobs.
* SLURM is asked for news at least every 4 x slurm-init-seconds-before-status-checks, not every three minutes.
* A job of several nodes asks for all of them (resource ``span_nodes``), while its first step, Snakemake itself,
  runs on one: the launcher reaches the others by srun.
* Whatever stands in the path of the checkout or of Python is one word of every command line: by themselves paths are
  left as they are, or within double quotes, where a shell executes what it finds in ``$(...)``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from snakemake.exceptions import WorkflowError

from scalpel.launch.health import UNHEALTHY

GRACE_SECONDS = 60.0  # for SLURM to queue a preempted job again, or to show a new one in its accounting
WAITING = "PENDING,RUNNING,SUSPENDED,CONFIGURING,REQUEUED,REQUEUE_HOLD,RESIZING,SIGNALING,STOPPED"


def extend(plan, site) -> None:
    """Change the plugin's executor, if it is installed. Nothing is asked of SLURM before the executor is made."""
    try:
        import snakemake_executor_plugin_slurm as plugin
        import snakemake_executor_plugin_slurm_jobstep as jobstep
        from snakemake_executor_plugin_slurm.utils import get_job_wildcards
        from snakemake_interface_executor_plugins import utils
        from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
    except ImportError:
        return
    executor = plugin.Executor  # changed in place: Snakemake has taken note of the class before it read the Snakefile
    old = vars(executor).get("old")  # and it reads the Snakefile more than once
    if old is None:
        methods = ("__post_init__", "run_job", "check_active_jobs", "format_job_exec")
        functions = ("query_job_status", "set_gres_string")
        old = executor.old = {name: getattr(executor, name) for name in methods}
        old |= {name: getattr(plugin, name) for name in functions}
        old["format_cli_value"] = utils.format_cli_value
    watched = Watched()

    def post_init(self, *args, **kwargs):
        from scalpel.preflight.slurm import site_refusals

        found = site_refusals(plan, site)
        if found:
            raise WorkflowError(" ".join(found))
        old["__post_init__"](self, *args, **kwargs)

    def run_job(self, job):
        self._failed_nodes |= unhealthy_nodes()
        rule = f"rule_{job.name}"
        wildcards = get_job_wildcards(job)
        comment = f"{rule}_wildcards_{wildcards}" if wildcards else rule
        known = None if job.is_group() else waiting_job(comment, str(self.workflow.workdir_init))
        if known is None:
            return old["run_job"](self, job)
        log = self.slurm_logdir / rule / wildcards / f"{known}.log"
        self.logger.info(f"SLURM job {known} of another start does job {job.jobid} already: waiting for it.")
        watched.adopted.add(known)
        self._report_job_submission_threadsafe(SubmittedJobInfo(job, external_jobid=known, aux={"slurm_logfile": log}))

    async def check_active_jobs(self, active_jobs):
        watched.active = {job.external_jobid for job in active_jobs}
        async for job in old["check_active_jobs"](self, active_jobs):
            yield job
        # The plugin asks less and less often while nothing ends, and short jobs wait for its next question.
        longest = 4 * self.workflow.executor_settings.init_seconds_before_status_checks
        self.next_seconds_between_status_checks = min(self.next_seconds_between_status_checks, longest)

    async def query_job_status(command, logger):
        states, seconds = await old["query_job_status"](command, logger)
        if states is None:
            return states, seconds
        theirs = watched.adopted & watched.active
        if theirs:
            name = command.split("--name ", 1)[1].split()[0]
            more, _ = await old["query_job_status"](
                command.replace(f"--name {name}", f"--jobs {','.join(theirs)}"), logger
            )
            states |= more or {}
        return settled(states, watched.active, watched.since, time.monotonic()), seconds

    def set_gres_string(job) -> str:
        text, nodes = old["set_gres_string"](job), job.resources.get("span_nodes")
        if not nodes:
            return text
        model, gpus = job.resources.get("gpu_model"), job.resources.get("gpu")
        every = f" --gpus={f'{model}:' if model else ''}{gpus * nodes}" if gpus else ""
        return f" --nodes={nodes}{every}"  # sbatch goes by the last --nodes

    def format_job_exec(self, job) -> str:
        text = old["format_job_exec"](self, job)
        # The plugin puts this within double quotes and sees to those in it alone.
        return text if self.workflow.executor_settings.pass_command_as_script else within_double_quotes(text)

    def format_cli_value(value, quote=False, base64_encode=False):
        if quote and isinstance(value, str) and not base64_encode and not utils.is_quoted(value):
            return shlex.quote(value)
        return old["format_cli_value"](value, quote=quote, base64_encode=base64_encode)

    def get_python_executable(self) -> str:
        return shlex.quote(sys.executable)

    executor.format_job_exec, utils.format_cli_value = format_job_exec, format_cli_value
    executor.get_python_executable = jobstep.Executor.get_python_executable = get_python_executable
    executor.__post_init__, executor.run_job, executor.check_active_jobs = post_init, run_job, check_active_jobs
    plugin.query_job_status, plugin.set_gres_string = query_job_status, set_gres_string


def within_double_quotes(text: str) -> str:
    """`text` as it must stand within a shell's double quotes, but for double quotes themselves."""
    return re.sub(r"([\\\\$`])", r"\\\1", text)


@dataclass
class Watched:
    """SLURM ids of the jobs this start waits for."""

    active: set[str] = field(default_factory=set)
    adopted: set[str] = field(default_factory=set)  # submitted by another start
    since: dict[str, float] = field(default_factory=dict)  # when a job was first seen to be stuck


def settled(states: dict[str, str], active: set[str], since: dict[str, float], now: float) -> dict[str, str]:
    """SLURM's states in the words the plugin knows; stuck jobs count as ended after GRACE_SECONDS.

    since: when each stuck job was first seen so, kept between calls. A job that SLURM does not know counts as
    completed: Snakemake then looks whether its result is there.
    """
    found = {job: state.split()[0].rstrip("+") for job, state in states.items() if state.strip()}
    for job in active:
        state = found.get(job)
        if state in ("PREEMPTED", "NODE_FAIL", "REVOKED", None):
            if now - since.setdefault(job, now) >= GRACE_SECONDS:
                found[job] = "COMPLETED" if state is None else "FAILED"
        else:
            since.pop(job, None)
    return found


def waiting_job(comment: str, workdir: str) -> str | None:
    """Id of a job of this checkout that waits or runs and has this comment; None when there is none."""
    command = ["squeue", "--noheader", "--states", WAITING, "--format", "%i|%k|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    here = os.path.realpath(workdir)
    for line in done.stdout.splitlines():
        job, said, where = [*line.split("|", 2), "", ""][:3]
        if said == comment and os.path.realpath(where) == here:
            return job
    return None


def unhealthy_nodes() -> set[str]:
    """Nodes that a job's health check marked; remove the node's file to use it again."""
    try:
        return {path.name for path in Path("results", UNHEALTHY).iterdir() if not path.name.startswith(".")}
    except OSError:
        return set()
