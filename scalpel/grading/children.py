"""Work on what a model wrote, in forked children with limits: it is untrusted input.

Every item has the same processor time and memory, however busy the machine is, and what exceeds them costs itself
alone. An item that ended a child which had worked on others is tried once more in a fresh one, since what these left
behind (caches, above all) may have been the cause. So n items take at most 2 n x `seconds` / `count` where there are
as many cores as children, and the little that starting children takes. Only JSON comes back.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SECONDS = 2.0  # of processor time, for one completion
MEMORY = 2 << 30  # bytes a child may allocate on top of what its parent holds
KEPT = 256 << 20  # bytes that a child may hold on to and be given another item
WALL_FACTOR = 100  # wall time over processor time at which a child that waits instead of working is ended
DONE, RAISED, SPENT = "done", "raised", "spent"


class Exceeded(Exception):
    """An item took more than its time or memory, or ended two children."""


class Raised(Exception):
    """The work raised on an item; the text names the exception."""


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection
    fresh: bool = True
    item: int = -1
    deadline: float = 0.0


def beside_each_other() -> int:
    """How many children: as there are cores for this process, four at most."""
    return min(4, len(os.sched_getaffinity(0)))


class Children:
    """`work` in forked children; use as a context manager. What it needs besides an item is there by the fork."""

    def __init__(self, work: Callable[[Any], Any], seconds: float = SECONDS, memory: int = MEMORY, count: int = 0):
        """seconds: processor time for one item. count: 0 for `beside_each_other`."""
        self.work, self.seconds, self.memory = work, seconds, memory
        self.slots: list[_Child | Any] = [None] * (count or beside_each_other())  # None: no child there

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in range(len(self.slots)):
            self._stop(slot)

    def each(self, items: Sequence[Any]) -> list[Any]:
        """``work(item)`` of every item as JSON gives it back, or the Exceeded or Raised that stands for it."""
        found: list[Any] = [None] * len(items)
        waiting, ended = deque(range(len(items))), [0] * len(items)
        busy: dict[Any, int] = {}  # pipe -> slot
        while waiting or busy:
            for slot in range(len(self.slots)):
                if waiting and slot not in busy.values():
                    number = waiting.popleft()
                    busy[self._give(slot, number, items[number], alone=ended[number] > 0)] = slot
            left = max(0.0, min(self.slots[slot].deadline for slot in busy.values()) - time.monotonic())
            for pipe in wait(list(busy), left) or self._late(busy):
                slot = busy.pop(pipe)
                number, fresh = self.slots[slot].item, self.slots[slot].fresh
                answer = self._answer(slot)
                if answer is None:
                    ended[number] += 1
                    over_time = self._stop(slot) == -signal.SIGPROF
                    if ended[number] == 2 or (fresh and over_time):
                        found[number] = Exceeded()
                    else:
                        waiting.appendleft(number)
                    continue
                kind, value, spent = answer
                found[number] = Raised(value) if kind == RAISED else value
                self.slots[slot].fresh = False
                if spent:
                    self._stop(slot)
        return found

    def one(self, item: Any) -> Any:
        """``work(item)``; raises Exceeded or Raised."""
        [found] = self.each([item])
        if isinstance(found, (Exceeded, Raised)):
            raise found
        return found

    def _give(self, slot: int, number: int, item: Any, alone: bool) -> Connection:
        """Hand an item to the child of a slot, a fresh one if it is to be alone."""
        if alone:
            self._stop(slot)
        child = self.slots[slot] or self._start(slot)
        child.item, child.deadline = number, time.monotonic() + self.seconds * WALL_FACTOR
        with contextlib.suppress(OSError):  # a child that is gone is found out when its answer is read
            child.pipe.send(item)
        return child.pipe

    def _late(self, busy: dict[Connection, int]) -> list[Connection]:
        """Pipes of children past their deadline, which are ended."""
        late = [pipe for pipe, slot in busy.items() if self.slots[slot].deadline <= time.monotonic()]
        for pipe in late:
            self.slots[busy[pipe]].process.kill()
        return late

    def _answer(self, slot: int) -> tuple[str, Any, bool] | None:
        try:
            return json.loads(self.slots[slot].pipe.recv_bytes())
        except (EOFError, OSError, json.JSONDecodeError):
            return None

    def _start(self, slot: int) -> _Child:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=self._serve, args=(there, here), daemon=True)
        process.start()
        there.close()
        self.slots[slot] = child = _Child(process, here)
        return child

    def _stop(self, slot: int) -> int | None:
        """End the child of a slot; returns what it exited with, minus the signal if one ended it."""
        child, self.slots[slot] = self.slots[slot], None
        if child is None:
            return None
        child.pipe.close()
        if child.process.exitcode is None:
            child.process.join(0.05)  # one that was ended by its time is not yet known to be
        child.process.kill()
        child.process.join()
        return child.process.exitcode

    def _serve(self, pipe: Connection, other: Connection) -> None:
        """The child: item after item until the parent closes its end."""
        for connection in (other, *(child.pipe for child in self.slots if child)):
            connection.close()
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in the midst of one long operation too
        held = _held()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = held + self.memory
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
        with contextlib.suppress(EOFError, OSError):
            while True:
                item = pipe.recv()  # the parent's own
                signal.setitimer(signal.ITIMER_PROF, self.seconds)
                try:
                    kind, value = DONE, self.work(item)
                except MemoryError:
                    os._exit(1)
                except Exception as error:
                    kind, value = RAISED, f"{type(error).__name__}: {error}"[:500]
                signal.setitimer(signal.ITIMER_PROF, 0)
                pipe.send_bytes(json.dumps([kind, value, _held() - held > KEPT], default=_plain).encode())


def _held() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON."""
    return value.tolist()
