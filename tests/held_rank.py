"""scripts/rank.py for tests: the first rank waits at set moments, until it is let go or asked to stop.

HELD: moments, as in "rollouts.jsonl:1 clock.jsonl:3": a journal has got its rows of a step. HELD_IN: a folder, in which
a moment that has come is a file of its name, and <moment>.go lets the rank go on.
"""

import os
import runpy
import signal
import time
from pathlib import Path

from scalpel.methods.state import Journal


def wait_at(moments: list[str], folder: Path) -> None:
    add = Journal.add

    def held(self: Journal, rows: list[dict]) -> None:
        add(self, rows)
        moment = f"{self.path.name}:{rows[0]['step']}"
        if moment not in moments:
            return
        asked: list[int] = []
        before = signal.getsignal(signal.SIGTERM)
        assert callable(before)
        signal.signal(signal.SIGTERM, lambda number, frame: (asked.append(number), before(number, frame)))
        (folder / moment).touch()
        while not asked and not (folder / f"{moment}.go").exists():
            time.sleep(0.01)
        signal.signal(signal.SIGTERM, before)

    Journal.add = held  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        wait_at(os.environ["HELD"].split(), Path(os.environ["HELD_IN"]))
    runpy.run_module("scripts.rank", run_name="__main__")
