"""The main of every stage program: open the step, hold its lease, make it, seal it. One argument, the directory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from scalpel.artifact.files import FINISHED, MANIFEST, PROVENANCE, RECIPE, STATE, read_json, write_atomically
from scalpel.artifact.job import Job, open_job
from scalpel.artifact.lease import Held, lease
from scalpel.artifact.manifest import is_own, is_stray, restore, seal
from scalpel.artifact.provenance import circumstances
from scalpel.errors import AGAIN, FINAL, Interrupted, UserError, status_of
from scalpel.launch import slurm
from scalpel.stages import STAGES


def run_stage(produce: Callable[[Job], None]) -> None:
    """Main of a stage program. Exit status FINAL for what the user can put right, AGAIN for one that stopped early."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        module = Path(sys.argv[0]).stem
        sys.exit(f"usage: python -m scripts.{module} results/<stage>/<name>-<digest>")
    directory = Path(sys.argv[1])
    try:
        job = open_job(directory)
        with lease(directory):
            if restore(directory, job.digest, job.inputs):
                shutil.rmtree(directory / STATE, ignore_errors=True)
                print(f"{directory} was finished before and is whole", file=sys.stderr)
                return
            with making(directory) as job:
                check_node(job)
                check_gates(job)
                os.environ.setdefault("OMP_NUM_THREADS", str(job.settings.get("threads", 1)))
                quiet_libraries(offline=job.stage != "fetch")
                print(f"{job.stage} {job.name}-{job.digest}", file=sys.stderr, flush=True)
                produce(job)
    except Interrupted as pause:
        _queue_again(directory, str(pause), pause.requeue)
    except Held as error:
        if not slurm.job():
            print(f"error: {error}", file=sys.stderr)
            sys.exit(FINAL)
        _queue_again(directory, str(error), True)  # rather than hold nodes while another job does the work
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(status_of(error))


@contextlib.contextmanager
def making(directory: Path) -> Iterator[Job]:
    """Open the step and, when the block succeeds, write provenance.json and then the manifest. Hold the lease before.

    What an earlier, interrupted start left is removed first, unless the stage is resumable: then the stage resumes
    from it, and state/ is removed once the manifest is written.
    """
    job = open_job(directory)
    started = time.time()
    for name in (MANIFEST, FINISHED):
        (directory / name).unlink(missing_ok=True)
    for entry in directory.iterdir():
        if is_stray(entry.name) or (not is_own(entry.name) and not STAGES[job.stage].resumable):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
    try:
        yield job
        provenance = circumstances() | {"seconds": round(time.time() - started, 2), "started": round(started, 2)}
        write_atomically(directory / PROVENANCE, json.dumps(provenance, indent=1) + "\n")
        seal(directory, read_json(directory / RECIPE), job.inputs)
        shutil.rmtree(directory / STATE, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"No space left on the disk of {directory} while {error.filename or 'a file'} was written; "
                "free some and start again: what was finished is kept."
            ) from error
        raise


def check_node(job: Job) -> None:
    """Refuse nodes whose GPUs do not work, and leave word of it: the next attempt runs elsewhere."""
    gpus = job.settings.pop("gpus", 0)
    if gpus:
        from scalpel.launch.health import refuse_unhealthy_nodes

        refuse_unhealthy_nodes(gpus, job.directory.resolve().parents[1])


def check_gates(job: Job) -> None:
    """Refuse a node whose packages are not those that the job's audit was made with."""
    if "audit" in job.gates:
        from scalpel.audit.fingerprint import refuse_other_stack

        refuse_other_stack(job.gates["audit"])


def quiet_libraries(offline: bool = True) -> None:
    """Environment of a process that loads models: no progress bars, no warnings to each other, no hub if `offline`."""
    # A thread that waits gives way soon: spinning ones stop each other on a machine that has other work.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")


def _queue_again(directory: Path, why: str, requeue: bool) -> NoReturn:
    """End this process short of its result; in a SLURM job, with the job queued again if asked for."""
    print(f"{directory}: {why}. Started again, it resumes.", file=sys.stderr, flush=True)
    if requeue and slurm.requeue():
        print("the job is queued again", file=sys.stderr, flush=True)
        time.sleep(120)  # SLURM ends it in this time
    sys.exit(AGAIN)
