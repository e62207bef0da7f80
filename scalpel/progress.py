"""Progress of long loops, as plain lines on stderr: they survive log files, pipes and SLURM."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def line(what: str, done: int, total: int, started: float, extra: str = "") -> None:
    """Print ``what done/total, elapsed, ETA``; `started` is a time.monotonic() reading."""
    elapsed = time.monotonic() - started
    eta = clock(elapsed / done * (total - done)) if done else "?"
    print(f"{what} {done}/{total}{extra}, elapsed {clock(elapsed)}, ETA {eta}", file=sys.stderr, flush=True)


def track(items: Iterable[T], what: str, total: int | None = None, every: float = 5.0) -> Iterator[T]:
    """Yield `items`, printing at most one progress line every `every` seconds and one at the end."""
    total = total if total is not None else len(items)  # type: ignore[arg-type]
    started = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - last >= every and done < total:
            line(what, done, total, started)
            last = time.monotonic()
    line(what, done, total, started)
