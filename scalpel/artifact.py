"""Results as content-hashed directories: recipe.json first, manifest.json last.

A result lies in ``results/<stage>/<name>-<digest>/``. Its digest is taken over what decides its content
(`digest_of`); ``recipe.json`` is written when the workflow starts and is all a stage program needs;
``manifest.json`` is written last and atomically, and lists every file with size and sha256. Workflow systems
delete declared outputs, manifest.json among them, before they start a job again; ``finished.json``, written just
before it, lets such a job find out in seconds that its result is there and whole.
Circumstances (host, versions, times, code) stand beside it in ``provenance.json`` and are never hashed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from scalpel.errors import AGAIN, Interrupted, UserError
from scalpel.launch import slurm

ROOT = Path(__file__).resolve().parent.parent
RECIPE, MANIFEST, PROVENANCE, LEASE = "recipe.json", "manifest.json", "provenance.json", "lease.json"
FINISHED = "finished.json"  # the manifest once more, and the sha256 of the inputs' manifests
STATE = "state"  # what a resumable stage goes on from; never part of a result
OWN_FILES = {RECIPE, MANIFEST, PROVENANCE, LEASE, FINISHED}
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0  # a lease of another host is taken over when its heartbeat is older than this
UNHEALTHY = "logs/unhealthy_nodes"  # in results/: a file for each node whose GPUs failed the check
LATE_SECONDS = 60.0  # that a shared file system may take to show another node's files


# ---------------------------------------------------------------- identity


def canonical(value: Any) -> str:
    """JSON text with sorted keys and no blanks; the same for equal values, whatever their order.

    Raises TypeError on anything JSON cannot represent without loss: callables, paths, NaN, non-string keys.
    """
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check(value: Any, where: str) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value} cannot stand in a recipe")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is not a string")
            _check(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    else:
        raise TypeError(f"{where}: {type(value).__name__} cannot stand in a recipe")


def digest_of(stage: str, version: int, recipe: dict, inputs: dict[str, str]) -> str:
    """First 12 hex digits of sha256 over {stage, version, recipe, digests of the inputs}."""
    text = canonical({"stage": stage, "version": version, "recipe": recipe, "inputs": inputs})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- a step


@dataclass(frozen=True)
class Step:
    """One result to be made: identity, inputs by role, and settings that do not change its content."""

    stage: str
    name: str
    version: int
    recipe: dict
    inputs: dict[str, Step] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    @property
    def digest(self) -> str:
        cached = self.__dict__.get("_digest")
        if cached is None:
            digests = {role: step.digest for role, step in self.inputs.items()}
            cached = digest_of(self.stage, self.version, self.recipe, digests)
            object.__setattr__(self, "_digest", cached)
        return cached

    @property
    def directory(self) -> str:
        """Relative to the working directory of the workflow."""
        return f"results/{self.stage}/{self.name}-{self.digest}"

    def frozen(self) -> dict:
        """What recipe.json holds."""
        return {
            "stage": self.stage,
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "recipe": self.recipe,
            "inputs": {role: {"digest": s.digest, "directory": s.directory} for role, s in self.inputs.items()},
            "settings": self.settings,
        }


def freeze(step: Step, root: Path) -> None:
    """Write recipe.json unless an equal one stands there; settings of an unfinished step are renewed."""
    directory = root / step.directory
    path = directory / RECIPE
    if path.exists() and (directory / MANIFEST).exists():
        return
    text = json.dumps(step.frozen(), indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text() != text:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def read_json(path: Path) -> dict:
    """Parsed JSON object; UserError naming the file when it is absent or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run snakemake once so that it is written.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not valid JSON (truncated?); delete its directory and run again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; delete its directory and run again.")
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write through a temporary file of the same directory, synced, so that no half file is ever seen."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A step opened by the program that makes it. `inputs` maps each role to a finished directory."""

    directory: Path
    stage: str
    name: str
    digest: str
    recipe: dict
    inputs: dict[str, Path]
    settings: dict

    def inputs_of(self, stage: str) -> dict[str, Path]:
        """The inputs whose role is ``<stage>/...``, keyed by what follows the slash."""
        return {role.split("/", 1)[1]: path for role, path in self.inputs.items() if role.startswith(stage + "/")}


def open_job(directory: Path) -> Job:
    """Read recipe.json and check that it is what the directory's name says and that its inputs are finished."""
    appears(directory / RECIPE)
    frozen = read_json(directory / RECIPE)
    try:
        digest = digest_of(
            frozen["stage"],
            frozen["version"],
            frozen["recipe"],
            {role: item["digest"] for role, item in frozen["inputs"].items()},
        )
        root = directory.resolve().parents[2]
        job = Job(
            directory=directory,
            stage=frozen["stage"],
            name=frozen["name"],
            digest=digest,
            recipe=frozen["recipe"],
            inputs={role: root / item["directory"] for role, item in frozen["inputs"].items()},
            settings=frozen["settings"],
        )
    except KeyError as missing:
        raise UserError(
            f"{directory / RECIPE} lacks {missing}; delete the directory and run snakemake again."
        ) from None
    if directory.resolve().name != f"{job.name}-{digest}":
        raise UserError(
            f"{directory} holds the recipe of {job.name}-{digest}; it was moved or edited: "
            "delete it and run snakemake again."
        )
    for role, path in job.inputs.items():
        if not appears(path / MANIFEST):
            raise UserError(f"{directory.name} needs {role} in {path}, which is not finished; run snakemake for it.")
        if not path.name.endswith("-" + frozen["inputs"][role]["digest"]):
            raise UserError(f"{directory / RECIPE}: input {role} points at {path}, another digest.")
    return job


def appears(path: Path) -> bool:
    """Whether a file is there; in a SLURM job, after waiting for a shared file system that shows it late."""
    end = time.monotonic() + (LATE_SECONDS if slurm.job() else 0)
    while not path.is_file():
        if time.monotonic() >= end:
            return False
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes NFS ask the server again
        time.sleep(0.5)
    return True


# ---------------------------------------------------------------- lease


class Held(UserError):
    """The step is being made by someone else; the message says by whom."""


@contextlib.contextmanager
def lease(directory: Path) -> Iterator[None]:
    """Hold the directory for this process; a second start of the same step fails with a clear sentence.

    A lease of a dead process of this host, or of another host whose heartbeat stopped, is taken over.
    """
    path = directory / LEASE
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "token": uuid.uuid4().hex,
    }
    for _ in range(3):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            holder = _holder(path)
            if holder is not None:
                job = f", SLURM job {holder['job']}" if holder.get("job") else ""
                raise Held(
                    f"{directory} is being made by process {holder['pid']} on {holder['host']}{job}; "
                    "wait for it, or end it first."
                ) from None
            # Stale: move it aside under a name of our own, so that two takers cannot both remove it.
            with contextlib.suppress(FileNotFoundError):
                aside = path.with_name(f".{LEASE}.{mine['token']}")
                os.replace(path, aside)
                aside.unlink()
            continue
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(mine))
        break
    else:
        raise UserError(f"{path} could not be taken; another start of the same step is at work, wait for it.")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if json.loads(path.read_text()).get("token") == mine["token"]:
                path.unlink()


ALIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}  # states of a job with processes


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot (Linux), which tells a reused process id apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _holder(path: Path) -> dict | None:
    """Who holds the lease, or None when it is stale."""
    try:
        age = time.time() - path.stat().st_mtime
        content = json.loads(path.read_text() or "null")
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):  # created a moment ago and not yet written, or torn by a crash
        return None if age > STALE_SECONDS else {"pid": "?", "host": "?"}
    if content.get("host") == socket.gethostname():
        try:
            os.kill(content["pid"], 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        alive = process_start(content["pid"]) == content.get("started")
        return content if alive else None
    if content.get("job"):
        if content["job"] == slurm.job():  # this job itself, before it was queued again on another node
            return None
        state = slurm.state(content["job"])
        if state is not None:
            return content if state in ALIVE else None
    return content if age <= STALE_SECONDS else None


# ---------------------------------------------------------------- making a result


@contextlib.contextmanager
def producing(directory: Path, resumable: bool = False) -> Iterator[Job]:
    """Open the step, hold its lease, and on success write provenance.json and then manifest.json.

    What an earlier, interrupted start left is removed first, unless the stage is `resumable`: then it is
    left to the stage to go on from, and ``state/`` is removed once the manifest is written.
    """
    job = open_job(directory)
    started = time.time()
    with lease(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
        (directory / FINISHED).unlink(missing_ok=True)
        for entry in directory.iterdir():
            if entry.name not in OWN_FILES and not resumable:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        try:
            yield job
            files = manifest_files(directory)
            provenance = circumstances() | {"seconds": round(time.time() - started, 2), "started": round(started, 2)}
            write_atomically(directory / PROVENANCE, json.dumps(provenance, indent=1) + "\n")
            frozen = read_json(directory / RECIPE)
            del frozen["settings"]
            manifest = frozen | {"files": files}
            made_of = {role: sha256_file(path / MANIFEST) for role, path in job.inputs.items()}
            write_atomically(directory / FINISHED, json.dumps({"manifest": manifest, "inputs": made_of}) + "\n")
            write_manifest(directory, manifest)
            shutil.rmtree(directory / STATE, ignore_errors=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"No space left on the disk of {directory} while {error.filename or 'a file'} was written; "
                    "free some and start again: what was finished is kept."
                ) from error
            raise


def write_manifest(directory: Path, manifest: dict) -> None:
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def restore(directory: Path, job: Job) -> bool:
    """Write manifest.json again if the result is there and whole, made by this recipe of these very inputs.

    A result is never taken for finished because its name says so: every file is hashed. To make one anew, delete
    its directory.
    """
    try:
        record = json.loads((directory / FINISHED).read_text())
        manifest, made_of = record["manifest"], record["inputs"]
        same = manifest["digest"] == job.digest and made_of == {
            role: sha256_file(path / MANIFEST) for role, path in job.inputs.items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not same or problems(directory, manifest):
        return False
    write_manifest(directory, manifest)
    shutil.rmtree(directory / STATE, ignore_errors=True)
    return True


def manifest_files(directory: Path) -> dict[str, dict]:
    """Size in bytes and sha256 of every file of a result; OWN_FILES and the resumable state aside."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}
        for name in names
        if name not in OWN_FILES and not name.startswith(STATE + "/")
    }


def circumstances() -> dict:
    """Versions, code, host: recorded beside a result, never part of its identity."""
    from importlib import metadata

    packages = ("torch", "transformers", "trl", "lighteval", "lm_eval", "math-verify", "pyarrow", "snakemake")
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "code": code_digest(),
        "commit": git_commit(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def code_digest() -> str:
    """First 12 hex digits over the library's and the scripts' sources."""
    total = hashlib.sha256()
    for folder in ("scalpel", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def git_commit() -> str | None:
    """The checkout's commit, with ``+`` when tracked files differ from it; None outside a checkout."""
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10
        )
        commit = run("rev-parse", "HEAD")
        if commit.returncode:
            return None
        dirty = run("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return commit.stdout.strip() + ("+" if dirty else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


# ---------------------------------------------------------------- checking a result


def problems(directory: Path, manifest: dict | None = None) -> list[str]:
    """What is wrong with a finished result: files missing, altered, truncated or not listed."""
    manifest = manifest or read_json(directory / MANIFEST)
    found = []
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        return [f"{directory / MANIFEST}: no list of files"]
    for name, expected in listed.items():
        path = directory / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size < expected["bytes"]:
            found.append(f"{path}: truncated ({path.stat().st_size} of {expected['bytes']} bytes)")
        elif path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            found.append(f"{path}: altered")
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in OWN_FILES and name not in listed and not name.startswith(STATE + "/"):
            found.append(f"{path}: not listed in the manifest")
    try:
        expected = digest_of(
            manifest["stage"],
            manifest["version"],
            manifest["recipe"],
            {role: item["digest"] for role, item in manifest["inputs"].items()},
        )
    except (KeyError, TypeError):
        return [*found, f"{directory / MANIFEST}: recipe missing or damaged"]
    if not directory.name.endswith("-" + expected):
        found.append(f"{directory / MANIFEST}: its recipe has digest {expected}, not that of the directory")
    return found


def run_stage(produce: Callable[[Job], None], resumable: bool = False) -> None:
    """Main of a stage program: one argument, the result directory. Exit status 2 for what the user can mend."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        module = Path(sys.argv[0]).stem
        sys.exit(f"usage: python -m scripts.{module} results/<stage>/<name>-<digest>")
    directory = Path(sys.argv[1])
    try:
        job = open_job(directory)
        with lease(directory):
            if restore(directory, job):
                print(f"{directory} was finished before and is whole", file=sys.stderr)
                return
        with producing(directory, resumable) as job:
            check_health(job)
            os.environ.setdefault("OMP_NUM_THREADS", str(job.settings.get("threads", 1)))
            quiet_libraries(offline=job.stage != "fetch")
            print(f"{job.stage} {job.name}-{job.digest}", file=sys.stderr, flush=True)
            produce(job)
    except Interrupted as pause:
        queue_again(directory, str(pause), pause.requeue)
    except Held as error:
        if not slurm.job():
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        queue_again(directory, str(error), True)  # rather than hold nodes while another job does the work
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def quiet_libraries(offline: bool = True) -> None:
    """Environment of a process that loads models: no progress bars, no warnings to each other, no hub if `offline`."""
    # A thread that waits gives way soon: spinning ones stop each other on a machine that has other work.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")


def queue_again(directory: Path, why: str, requeue: bool) -> NoReturn:
    """End this process short of its result; in a SLURM job, with the job queued again if asked for."""
    print(f"{directory}: {why}. Started again, it goes on.", file=sys.stderr, flush=True)
    if requeue and slurm.requeue():
        print("the job is queued again", file=sys.stderr, flush=True)
        time.sleep(120)  # SLURM ends it in this time
    sys.exit(AGAIN)


def check_health(job: Job) -> None:
    """Refuse a node whose GPUs do not work, and leave word of it: the next attempt goes elsewhere."""
    gpus = job.settings.pop("gpus", 0)
    if not gpus:
        return
    from scalpel.preflight import health

    found = health(gpus)
    if found:
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        marks = job.directory.resolve().parents[1] / UNHEALTHY
        marks.mkdir(parents=True, exist_ok=True)
        write_atomically(marks / node, "\n".join(found) + "\n")
        raise UserError(f"node {node}: {found[0]} Jobs avoid it while {marks / node} is there.")


def run_drawing(produce: Callable[[dict, dict[str, list[Path]], Path], None]) -> None:
    """Main of a figure or report program: one argument, the frozen recipe in results/figures/<study>/recipes/.

    `produce` gets the recipe, the result directories by role, and the folder of the study's figures.
    """
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(
            f"usage: python -m scripts.{Path(sys.argv[0]).stem} results/figures/<study>/recipes/<name>-<digest>.json"
        )
    path = Path(sys.argv[1])
    try:
        frozen = read_json(path)
        root = path.resolve().parents[4]
        inputs = {role: [root / directory for directory in found] for role, found in frozen["inputs"].items()}
        for role, directories in inputs.items():
            for directory in directories:
                if not (directory / MANIFEST).is_file():
                    raise UserError(
                        f"{frozen['name']} needs {role} in {directory}, which is not finished; run snakemake for it."
                    )
        produce(frozen, inputs, path.parents[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
