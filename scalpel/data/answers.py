"""Answer checking with math-verify in a bounded child process: what a model wrote is untrusted input.

math-verify bounds itself with signals, which fail in threads and do not bound memory; here a child process
with limits of memory and processor time does the work, and is replaced when a pair exceeds them. The limit is of
processor time, so that a verdict does not depend on how busy the machine is. Only text goes in and out.

The answer is looked for inside ``<answer>`` tags when there are some, else in the whole text: ``\\boxed{...}``
first, then LaTeX, then plain expressions, so that ``<answer>12</answer>`` counts.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

PAIRS_PER_MESSAGE = 64
WALL_FACTOR = 20  # wall-clock limit over processor-time limit, for a child that waits instead of working


class Grader:
    """Grades completions against gold answers; use as a context manager.

    seconds: processor time for one pair; memory_mib: address space of the child, None for no limit.
    """

    def __init__(self, seconds: float = 5.0, memory_mib: int | None = 4096):
        self.seconds, self.memory_mib = seconds, memory_mib
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def grade(self, gold: str, completion: str) -> bool | None:
        """True or False; None when math-verify finds no answer in `gold`."""
        return self.grade_many([(gold, completion)])[0]

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """`grade` for every (gold, completion). A pair that exceeds time or memory is wrong: False."""
        results: list[bool | None] = []
        for start in range(0, len(pairs), PAIRS_PER_MESSAGE):
            results += self._ask(list(pairs[start : start + PAIRS_PER_MESSAGE]))
        return results

    def _ask(self, pairs: list[tuple[str, str]]) -> list[bool | None]:
        """One message to the child. It answers pair by pair, so that a pair that hangs is known."""
        results: list[bool | None] = []
        died_at = -1  # the pair at which a child died for another reason than its time
        while len(results) < len(pairs):
            child = self._child or self._start()
            left = pairs[len(results) :]
            expired = threading.Event()
            try:
                child.stdin.write(json.dumps(left) + "\n")
                child.stdin.flush()
                for _ in left:
                    expired.clear()
                    results.append(json.loads(self._read_line(child, expired)))
            except (BrokenPipeError, json.JSONDecodeError):  # the child is gone, at the pair after the last answer
                self._stop()
                over_time = expired.is_set() or child.returncode == -signal.SIGPROF
                if over_time or died_at == len(results):
                    results.append(False)
                else:  # perhaps not the pair's doing: once more in a new child
                    died_at = len(results)
        return results

    def _read_line(self, child: subprocess.Popen, expired: threading.Event) -> str:
        """The child's next line; past the wall-clock limit the child is ended and `expired` set."""

        def end() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(self.seconds * WALL_FACTOR, end)
        timer.start()
        try:
            return child.stdout.readline()
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen:
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), str(self.memory_mib or 0), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._child.stdout.readline().strip() != "ready":  # imports are not on a pair's time
            self._stop()
            raise RuntimeError("the answer checker did not start; is math-verify installed?")
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            with contextlib.suppress(BrokenPipeError):  # closing flushes what a dead child never read
                self._child.stdin.close()
            self._child.stdout.close()
            self._child = None


def window(text: str, length: int = 4000) -> str:
    """The part of a long text that may hold the answer: around its last box, else its end.

    math-verify's regular expressions take minutes on 13,000 characters of repeated ``\\boxed{}``, which is what
    base models write when they do not stop (22 of 250 real generations of Qwen2.5-Math-7B took over 5 s).
    """
    if len(text) <= length:
        return text
    box = text.rfind("\\boxed")
    end = len(text) if box < 0 else min(len(text), box + length // 2)
    part = text[max(0, end - length) : end]
    return part.partition("\n")[2] or part  # from a new line on, so as not to begin within a formula


def main() -> None:
    """The child: a JSON list of pairs per line in, one JSON value per pair out."""
    import logging
    import resource

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    limit, seconds = int(sys.argv[1]) << 20, float(sys.argv[2])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in the midst of one long operation too
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    logging.disable(logging.CRITICAL)
    boxed = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    golds: dict[str, list] = {}

    def answer_of(text: str) -> list:
        tagged = text.rpartition("<answer>")[2].partition("</answer>")[0] if "<answer>" in text else ""
        return (extract(tagged) if tagged.strip() else []) or extract(text)

    def extract(text: str) -> list:
        return parse(window(text), extraction_config=boxed, extraction_mode="first_match", parsing_timeout=None)

    def gold_of(text: str) -> list:
        if text not in golds:
            if len(golds) > 4096:
                golds.clear()
            golds[text] = (answer_of(f"\\boxed{{{text}}}") or answer_of(text)) if text and text.strip() else []
        return golds[text]

    def grade(gold_text: str, completion: str) -> bool | None:
        try:
            gold = gold_of(gold_text)
            if not gold:
                return None
            return bool(completion and verify(gold, answer_of(completion), timeout_seconds=None))
        except Exception:  # math-verify and SymPy raise nearly anything on odd input, MemoryError included
            return False

    print("ready", flush=True)
    for line in sys.stdin:
        for gold_text, completion in json.loads(line):
            signal.setitimer(signal.ITIMER_PROF, seconds)
            verdict = grade(gold_text, completion)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
