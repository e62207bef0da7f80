"""Grading by the rules of scalpel/grading/judge.py in a process of its own, for programs that are not to be forked.

The process imports math-verify once; its forked children do the work within limits (scalpel/grading/children.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scalpel.grading.children import MEMORY, SECONDS, Children, Exceeded, Raised

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from scalpel.grading.grader import main; main()"


class Grader:
    """Judges completions; use as a context manager.

    rule: of judge.RULES. seconds: processor time for one completion, however busy the machine is. memory: bytes that
    one may take. What exceeds them is wrong. A batch of n takes at most 2 n x seconds / children.
    """

    def __init__(self, rule: str = "strict", seconds: float = SECONDS, memory: int = MEMORY, children: int = 0):
        self.rule, self.seconds, self.memory, self.children = rule, seconds, memory, children
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def grade(self, gold: str, completion: str) -> bool | None:
        """True or False; None when there is no answer in `gold`."""
        return self.grade_many([(gold, completion)])[0]

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """`grade` for every (gold, completion). A pair that exceeds time or memory is wrong: False."""
        return self._ask(self.rule, list(pairs))

    def form_many(self, completions: Sequence[str]) -> list[bool]:
        """Whether each completion has the form that the rule asks for."""
        return self._ask(f"{self.rule} form", [[completion] for completion in completions])

    def _ask(self, what: str, items: list) -> list[Any]:
        """One message to the process and its answer; a process that somebody killed is started once more."""
        if not items:
            return []
        message = json.dumps([what, items])
        for _ in range(2):
            process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(message + "\n")
                process.stdin.flush()
                if answer := process.stdout.readline():
                    return json.loads(answer)
            self._stop()
        raise RuntimeError("the process that grades answers ended twice; is there memory for it?")

    def _start(self) -> subprocess.Popen:
        arguments = [str(ROOT), str(self.seconds), str(self.memory), str(self.children)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            self._stop()
            raise RuntimeError("the process that grades answers did not start; is math-verify installed?")
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            assert process.stdin is not None and process.stdout is not None
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):  # closing flushes what a dead process never read
                process.stdin.close()
            process.stdout.close()


def main() -> None:
    """The process: [what is asked, items] as JSON per line in, a JSON list per line out."""
    import logging

    from scalpel.grading.judge import ASKED, warm

    seconds, memory, count = float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    logging.disable(logging.CRITICAL)
    warm()
    with Children(lambda asked: ASKED[asked[0]](*asked[1]), seconds, memory, count) as children:
        print("ready", flush=True)
        for line in sys.stdin:
            what, items = json.loads(line)
            found = children.each([(what, item) for item in items])
            wrong = (Exceeded, Raised)  # math-verify and SymPy raise nearly anything on odd input
            print(json.dumps([False if isinstance(value, wrong) else value for value in found]), flush=True)
