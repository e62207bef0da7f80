"""A job that ended for the user's own mistake is not tried again, whatever Snakemake's `--retries` says.

A rule's shell leaves `<log>.final` when its program ends with status FINAL (workflow/rules/common.smk); Snakemake asks
each failed job how often it may be tried again, and such a one answers: not once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scalpel.errors import FINAL

if TYPE_CHECKING:
    from snakemake.jobs import Job

MARK = ".final"  # appended to a job's log


def keep_status(command: str, log: str) -> str:
    """The shell command with the mark taken away before it and, when it ends with status FINAL, left after it."""
    mark = f"{log}{MARK}"
    return f"rm -f {mark}; {command} || {{{{ code=$?; [ $code -ne {FINAL} ] || touch {mark}; exit $code; }}}}"


def refused(job: Job) -> bool:
    """Whether a Snakemake job's program said that it is for the user to put right."""
    return any(Path(f"{log}{MARK}").is_file() for log in job.log)


def final_errors_are_final() -> None:
    """Change Snakemake's jobs in place, once."""
    from snakemake.jobs import Job

    before = Job.restart_times.fget
    if not hasattr(before, "scalpel"):

        def restart_times(job: Job) -> int:
            return 0 if refused(job) else before(job)

        restart_times.scalpel = True  # type: ignore[attr-defined]
        Job.restart_times = property(restart_times)
