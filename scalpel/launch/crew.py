"""Child processes of one job, here or on its other nodes: started, listened to, and ended, none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from scalpel.artifact.checking import CHECKED
from scalpel.artifact.files import ROOT
from scalpel.launch import slurm

DEVICES = "SCALPEL_DEVICES"  # the GPUs a child may see; SLURM sets CUDA_VISIBLE_DEVICES again for every step
EXTENSIONS = "TORCH_EXTENSIONS_DIR"  # where torch compiles and keeps extensions


@dataclass
class Child:
    name: str
    process: subprocess.Popen
    listener: threading.Thread


class Crew:
    """Children by name. Leaving the `with` ends those that still run, with all they started."""

    def __init__(self, gpus: int = 0) -> None:
        """gpus: of each of the job's nodes, all of which a child on another node may use."""
        self.gpus = gpus
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.children):
            self.end(name)

    def start(
        self,
        name: str,
        module: str,
        arguments: list[str],
        environment: dict[str, str],
        node: str | None = None,
        secret: str = "",
        descriptors: Sequence[int] = (),
        heard: Callable[[str], None] | None = None,
    ) -> None:
        """Run ``python -m module arguments`` here, or by srun on another `node` of this job.

        secret: the first line of its standard input, which nobody else can read. descriptors: open files that a child
        here inherits. heard: called with each line that it says.
        """
        command, mine = [sys.executable, "-m", module, *arguments], dict(os.environ)
        if node is not None:
            command, mine = slurm.on_node(node, self.gpus, command)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=mine | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", CHECKED: "1"} | environment,
            start_new_session=True,
            pass_fds=descriptors,
        )
        listener = threading.Thread(target=relay, args=(name, process.stdout, heard), daemon=True, name=name)
        listener.start()
        if secret:
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # a child that has ended is seen by its status
                process.stdin.write(f"{secret}\n".encode())
                process.stdin.flush()
        self.children[name] = Child(name, process, listener)

    def status(self, name: str) -> int | None:
        """Exit status of a child, negative for a signal; None while it runs."""
        return self.children[name].process.poll()

    def signal(self, names: list[str], number: signal.Signals) -> None:
        for name in names:
            with contextlib.suppress(ProcessLookupError):
                self.children[name].process.send_signal(number)

    def end(self, name: str, seconds: float = 10.0) -> None:
        """Close the child's standard input, which ends a server; kill what is left of its session after `seconds`."""
        child = self.children.pop(name)
        assert child.process.stdin is not None
        with contextlib.suppress(OSError):
            child.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(seconds)
        if child.process.poll() is None and "srun" in str(cast(list[str], child.process.args)[0]):
            child.process.terminate()  # which srun passes on to its node
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        child.listener.join(timeout=5)

    def kill(self, names: list[str]) -> None:
        """End children that hold nothing worth saving, at once."""
        for name in names:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.children[name].process.pid, signal.SIGKILL)


def relay(name: str, stream: IO[bytes], heard: Callable[[str], None] | None) -> None:
    """Print a child's lines as they come, under its name; hand them to `heard` first."""
    for line in stream:
        text = line.decode(errors="replace").rstrip()
        if heard:
            heard(text)
        sys.stderr.write(f"[{name}] {text}\n")
        sys.stderr.flush()


def prepare_child() -> None:
    """First thing in a child: end when the parent ends, however it ends, and see only the GPUs given."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == 1 and not slurm.job():
        sys.exit("the launcher ended before its child began")
    if DEVICES in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[DEVICES]


def compile_on_this_host() -> None:
    """Let what DeepSpeed compiles lie in a folder of this host's own, without locks of compilers that were killed.

    torch waits for ever for such a lock. A living compiler has it open, as this host's /proc shows.
    """
    if EXTENSIONS not in os.environ:
        return
    folder = Path(os.environ[EXTENSIONS]) / socket.gethostname()
    os.environ[EXTENSIONS] = str(folder)
    if os.environ.get("LOCAL_RANK") == "0":
        for lock in folder.glob("*/lock"):
            if not is_open(lock):
                lock.unlink(missing_ok=True)


def is_open(path: Path) -> bool:
    """Whether a process of this host's, as far as this user may see them, has a file open."""
    whole = os.path.realpath(path)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == whole:
                return True
    return False


def wait_for_end_of_input() -> None:
    """Block until the launcher closes this process's standard input or ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass


def until(seconds: float, condition: Callable[[], Any], every: float = 0.2) -> bool:
    """Whether `condition` came true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
