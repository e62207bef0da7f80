"""The main of every stage program: open the step, hold its lease, make it, seal it. One argument, the directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from scalpel.artifact.disk import disk_errors
from scalpel.artifact.files import (
    CIRCUMSTANCES,
    FINISHED,
    MANIFEST,
    PROVENANCE,
    RECIPE,
    RETIRED,
    STATE,
    is_abandoned,
    is_temporary,
    read_json,
    remove,
    results_of,
    write_atomically,
)  # fmt: skip
from scalpel.artifact.job import Job, open_job
from scalpel.artifact.lease import Held, lease
from scalpel.artifact.manifest import content_hashes, is_own, restore, seal
from scalpel.artifact.provenance import circumstances, cpu_seconds
from scalpel.errors import AGAIN, FINAL, Interrupted, UserError, status_of
from scalpel.launch import slurm
from scalpel.stages import STAGES

STARTED = "SCALPEL_CONFIG"  # in the environment of all that Snakemake starts: the configuration it was started with
MADE_OF = "made_of.json"  # in state/: the content hashes of the inputs that an interrupted start read
LOOK_SECONDS = 2.0  # between looks at a result that somebody else makes


def run_stage(produce: Callable[[Job], None]) -> None:
    """Main of a stage program. Exit status FINAL for what the user can put right, AGAIN for one that stopped early."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        module = Path(sys.argv[0]).stem
        sys.exit(f"usage: python -m scripts.{module} results/<stage>/<name>-<digest>")
    directory = Path(sys.argv[1])
    try:
        with disk_errors(directory):
            job = open_job(directory)
            with held(directory):
                if restore(directory, job.digest, job.inputs):
                    shutil.rmtree(directory / STATE, ignore_errors=True)
                    _sweep(directory)
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
def held(directory: Path) -> Iterator[None]:
    """Hold the directory's lease. Held when somebody else does, by hand and in SLURM's jobs.

    A job that Snakemake started on this machine waits instead: when Snakemake is killed the jobs of its last start
    run on, and the next start is to end with their results.
    """
    told = False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lease(directory))
            except Held as error:
                if slurm.job() or STARTED not in os.environ:
                    raise
                if not told:
                    print(f"{str(error).split(';')[0]}: waiting for it", file=sys.stderr, flush=True)
                told = True
            else:
                yield
                return
        time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def making(directory: Path) -> Iterator[Job]:
    """Open the step and, when the block succeeds, write provenance.json and then the manifest. Hold the lease before.

    What an earlier, interrupted start left is removed first, unless the stage is resumable and its inputs hold what
    they held then: it resumes from that, and state/ is removed once the manifest is written. When the block fails,
    what a stage that cannot be resumed has written is removed at once, unless it is evidence. Raises UserError when an
    input changed meanwhile.
    """
    job = open_job(directory)
    started, cpu = time.time(), cpu_seconds()
    try:
        made_of = content_hashes(job.inputs)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory}: the manifest of an input is damaged; `make verify` says which.") from None
    resumable = STAGES[job.stage].resumable
    for name in (MANIFEST, FINISHED):
        (directory / name).unlink(missing_ok=True)
    _sweep(directory)
    if not resumable or (directory / RETIRED).exists() or not _made_of(directory, made_of):
        _clear(directory)
    if resumable and made_of:
        (directory / STATE).mkdir(exist_ok=True)
        write_atomically(directory / STATE / MADE_OF, json.dumps(made_of) + "\n")
    try:
        yield job
        took = {"seconds": time.time() - started, "cpu_seconds": cpu_seconds() - cpu, "started": started}
        provenance = circumstances() | {name: round(value, 2) for name, value in took.items()}
        if (more := directory / STATE / CIRCUMSTANCES).exists():
            provenance |= read_json(more)
        write_atomically(directory / PROVENANCE, json.dumps(provenance, indent=1) + "\n")
        if content_hashes(job.inputs) != made_of:
            raise UserError(f"an input of {directory} was made again while it was read; start snakemake again.")
        _sweep(directory)
        seal(directory, read_json(directory / RECIPE), job.inputs)
        shutil.rmtree(directory / STATE, ignore_errors=True)
    except Exception:
        if not resumable and not STAGES[job.stage].evidence:
            with contextlib.suppress(OSError):
                _clear(directory)
        raise


def _sweep(directory: Path) -> None:
    """Remove the temporary files below a result whose lease is held; a recipe's may be another start's, alive."""
    for path in directory.rglob(".*.tmp"):
        if is_abandoned(path) or (is_temporary(path.name) and not path.name.startswith(f".{RECIPE}.")):
            path.unlink(missing_ok=True)


def _clear(directory: Path) -> None:
    """Remove everything but the recipe and the leases."""
    for entry in directory.iterdir():
        if entry.name in (STATE, PROVENANCE, RETIRED) or not is_own(entry.name):
            remove(entry)


def _made_of(directory: Path, made_of: dict[str, str]) -> bool:
    """Whether what an interrupted start left, if anything, was made of these very inputs."""
    path = directory / STATE / MADE_OF
    if not path.is_file():
        return True
    try:
        same = json.loads(path.read_text()) == made_of
    except ValueError:
        same = False
    if not same:
        print(f"{directory}: an input has changed since it was interrupted; starting over", file=sys.stderr, flush=True)
    return same


def check_node(job: Job) -> None:
    """Refuse nodes whose GPUs do not work, and leave word of it: the next attempt runs elsewhere."""
    gpus = job.settings.pop("gpus", 0)
    if gpus:
        from scalpel.launch.health import refuse_unhealthy_nodes

        refuse_unhealthy_nodes(gpus, results_of(job.directory, 2))


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
