"""What a job asks SLURM about itself: its nodes, the time it has left, and to be queued again.

Everything is asked of SLURM's commands rather than of the environment: Snakemake's job step passes on
SLURM_JOB_ID and few other variables. Outside a job there is nothing to ask and every answer is empty.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import NamedTuple, cast

SECONDS = 30.0  # that a SLURM command may take


def job() -> str | None:
    """The id of the job this process belongs to; None outside one."""
    return os.environ.get("SLURM_JOB_ID")


def ask(*words: str) -> str | None:
    """What the command prints; None when it is absent, fails or takes too long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def seconds_of(left: str) -> float | None:
    """Seconds of SLURM's ``[days-][hours:]minutes:seconds``; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", left.strip())
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def deadline() -> float | None:
    """When the job reaches its time limit, as time.time(); None without one."""
    left = ask("squeue", "--noheader", "--jobs", cast(str, job()), "--format", "%L") if job() else None
    seconds = seconds_of(left) if left else None
    return None if seconds is None else time.time() + seconds


class Partition(NamedTuple):
    """What SLURM says of a partition; None: no limit, or not known."""

    name: str = ""
    seconds: float | None = None  # its time limit
    mem_mb: int | None = None  # of its largest node


def partitions() -> dict[str, Partition]:
    """By name; "" stands for the default one. Empty when SLURM is silent."""
    found: dict[str, Partition] = {}
    for line in (ask("sinfo", "--noheader", "--exact", "--format", "%P|%l|%m") or "").splitlines():
        name, limit, memory, *_ = (*line.strip().split("|"), "", "")
        bare, mem = name.rstrip("*"), int(memory) if memory.isdigit() else None
        before = found.get(bare, Partition())
        largest = max((m for m in (before.mem_mb, mem) if m), default=None)
        found[bare] = Partition(bare, seconds_of(limit), largest)
        if name.endswith("*"):
            found[""] = found[bare]
    return found


def state(job_id: str) -> str | None:
    """RUNNING, PENDING, ...; empty when SLURM no longer knows the job, None when it cannot be asked."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job_id, "--states", "all", "--format", "%T"],
            capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None
    return done.stdout.strip()


def restarts() -> int:
    """How often this job was queued again."""
    text = ask("scontrol", "show", "job", cast(str, job()), "--oneliner") if job() else None
    found = re.search(r"\bRestarts=(\d+)", text or "")
    return int(found[1]) if found else 0


def requeue() -> bool:
    """Queue this job again, which ends it here; False when SLURM refuses."""
    return ask("scontrol", "requeue", cast(str, job())) is not None if job() else False


def nodes() -> list[str]:
    """Names of this job's nodes, the one of the batch script first; empty outside a job."""
    listed = ask("squeue", "--noheader", "--jobs", cast(str, job()), "--format", "%N") if job() else None
    return (ask("scontrol", "show", "hostnames", listed) or "").split() if listed else []


def on_node(node: str, gpus: int, command: list[str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment) by which srun starts `command` on another node of this job, with `gpus` of its GPUs."""
    # What SLURM set for the step this process is in would be taken for options of the new one.
    kept = ("SLURM_CONF", "SLURM_JOB_ID")
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SRUN_")) or key in kept}
    words = [
        "srun", f"--jobid={job()}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}",
        f"--gpus={gpus}" if gpus else "--gres=none", "--export=ALL", "--kill-on-bad-exit=1",
    ]  # fmt: skip
    return [*words, *command], mine


def address(node: str) -> str:
    """The network address SLURM knows the node by, else its name."""
    found = re.search(r"\bNodeAddr=(\S+)", ask("scontrol", "show", "node", node, "--oneliner") or "")
    return found[1] if found else node
