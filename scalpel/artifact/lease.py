"""Who makes a result now: one process at a time, on whatever host, and a dead one's place is taken over.

Announce, then look. A taker writes a lease of its own, under a name nobody else uses, and then looks at all leases of
the directory. It holds the directory when no other lease is alive; else it takes its own away again. Of two takers,
the one that announced later sees the other, so both can never hold; nobody moves or replaces a lease of somebody
else, and only one that was judged dead is removed, by its own name. Creating, listing and removing files is all that
is asked of the file system: filelock's SoftFileLease, the library's answer to this, exchanges two names atomically
(renameat2), which NFS and most parallel file systems refuse, and then never takes over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from scalpel.artifact.files import LEASE, MANIFEST, STATE, sweep, temporary
from scalpel.errors import UserError
from scalpel.launch import slurm

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0  # a lease of another host is dead when it was not renewed for so long
SETTLE_SECONDS = 5.0  # that takers who see each other may take to agree
ALIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}  # states of a job with processes
NAME = re.compile(rf"{LEASE}\.([0-9a-f]{{32}})\.json")


class Held(UserError):
    """The step is being made by someone else; the message says by whom."""


class Holder(NamedTuple):
    """A lease that is alive: its token, who wrote it ("?" when not readable), whether it holds or still looks, and
    since when (time.time())."""

    token: str
    host: str
    pid: int | str
    job: str | None
    holds: bool = True
    since: float | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", SLURM job {self.job}" if self.job else "")


@contextlib.contextmanager
def lease(directory: Path) -> Iterator[None]:
    """Hold the directory for this process; Held when somebody else does.

    A lease of a dead process of this host, or of another host whose heartbeat stopped, is taken over. A process whose
    lease was taken over, because it was stopped for longer than STALE_SECONDS, ends at once.
    """
    token = secrets.token_hex(16)
    mine = directory / f"{LEASE}.{token}.json"
    try:
        _take(directory, mine, token)
        with _heartbeat(mine):
            yield
    finally:
        with contextlib.suppress(OSError):
            mine.unlink(missing_ok=True)


def holders(directory: Path) -> list[Holder]:
    """Who holds the directory, for people to read; judged by this machine's clock."""
    found = [_alive(path, time.time(), {}) for path in directory.glob(f"{LEASE}.*.json") if NAME.fullmatch(path.name)]
    return [holder for holder in found if holder and holder.holds]


def clear_remains(directory: Path) -> None:
    """Remove what dead processes left in a result: temporary files, leases, the state of a finished one.

    Leases of other hosts are for takers to judge, and a directory that anybody holds is left alone.
    """
    sweep(directory)
    for path in directory.glob(f"{LEASE}.*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            of_here = json.loads(path.read_text())["host"] == socket.gethostname()
            if of_here and NAME.fullmatch(path.name) and _alive(path, time.time(), {}) is None:
                path.unlink(missing_ok=True)
    if (directory / MANIFEST).is_file() and (directory / STATE).is_dir() and not holders(directory):
        shutil.rmtree(directory / STATE, ignore_errors=True)


def _take(directory: Path, mine: Path, token: str) -> None:
    """Return when this process holds the directory; Held when another does."""
    end, waited = time.monotonic() + SETTLE_SECONDS, False
    watched: dict[str, tuple[float, float]] = {}
    _announce(mine, holds=False)
    while True:
        others = _others(directory, mine, watched)
        if not others:
            return _announce(mine, holds=True)
        if watched and not waited:
            print(f"a lease in {directory} is dated in the future: watching it", file=sys.stderr, flush=True)
            end, waited = end + STALE_SECONDS, True
        if any(other.holds and other.token not in watched for other in others) or time.monotonic() > end:
            raise Held(f"{directory} is being made by {others[0]}; wait for it, or end it first.")
        if min(other.token for other in others) < token:  # of takers who see each other the smallest token stays
            mine.unlink(missing_ok=True)
            time.sleep(0.3)
            _announce(mine, holds=False)
        time.sleep(0.1)


def _announce(path: Path, holds: bool) -> None:
    """Write the lease, complete when it first appears under its name."""
    content = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "holds": holds,
        "since": round(time.time(), 1),
    }
    partial = temporary(path)
    try:
        partial.write_text(json.dumps(content))
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _others(directory: Path, mine: Path, watched: dict[str, tuple[float, float]]) -> list[Holder]:
    """The other leases that are alive; dead ones are removed."""
    now = mine.stat().st_mtime  # just written: the file server's clock, by which other hosts' leases are dated, too
    found = []
    for path in directory.glob(f"{LEASE}.*.json"):
        if NAME.fullmatch(path.name) and path != mine:
            holder = _alive(path, now, watched)
            if holder is None:
                path.unlink(missing_ok=True)
            else:
                found.append(holder)
    return found


def _alive(path: Path, now: float, watched: dict[str, tuple[float, float]]) -> Holder | None:
    """The lease's holder, or None when it is dead. `now`: the time by the clock that dates the files, in seconds.

    watched: token -> (date, when it was first seen) of leases dated in the future, which count as renewed only when
    their date moves.
    """
    token = cast("re.Match[str]", NAME.fullmatch(path.name))[1]
    try:
        dated = path.stat().st_mtime
        content = json.loads(path.read_text())
        rest = content.get("job"), content.get("holds", True), content.get("since")
        holder = Holder(token, content["host"], int(content["pid"]), *rest)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        content, holder = {}, Holder(token, "?", "?", None)
    if holder.host == socket.gethostname():
        try:
            os.kill(cast(int, holder.pid), 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return holder if process_start(cast(int, holder.pid)) == content.get("started") else None
    if holder.job:
        if holder.job == slurm.job():  # this job itself, before it was queued again on another node
            return None
        state = slurm.state(holder.job)
        if state is not None:
            return holder if state in ALIVE else None
    age = now - dated
    if age < -HEARTBEAT_SECONDS:
        date, since = watched.get(token, (None, 0.0))
        if date != dated:
            since = time.monotonic()
            watched[token] = dated, since
        age = time.monotonic() - since
    return holder if age <= STALE_SECONDS else None


@contextlib.contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    """Renew the lease while the block runs; end the process when somebody took it over."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(path)
            except FileNotFoundError:
                if not stop.is_set():
                    print(f"error: {path.parent} was taken over by another process; this one ends.", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(2)
            except OSError:
                pass  # a passing fault of the file system: the next beat will do

    thread = threading.Thread(target=beat, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot (Linux), which tells a reused process id apart.

    None for one that has ended, waited for by its parent or not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None
