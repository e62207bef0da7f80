"""The harnesses' grading in a bounded child process: what a model wrote is untrusted input.

LightEval bounds its extraction with signals, which do not interrupt a big power inside Python's C code and do not bound
memory; lm-eval bounds nothing. A forked child grades question by question and is replaced when one exceeds its time or
memory; that question counts as wrong. Only JSON comes back.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SECONDS = 20.0  # for one completion
MEMORY = 4 << 30  # bytes the child may allocate on top of what the parent holds
FAILED = "failed"  # what the child answers when grading raised


class Exceeded(Exception):
    """Grading one question took more than its time or memory, or ended the child."""


class Bounded:
    """`work` in a forked child; use as a context manager. What it needs besides its argument is there by the fork."""

    def __init__(self, work: Callable[[Any], Any]):
        self.work = work
        self._child = None

    def __enter__(self) -> Bounded:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def ask(self, argument: Any, seconds: float) -> Any:
        """The JSON value that ``work(argument)`` returns; Exceeded, or RuntimeError when it raised one itself."""
        _, pipe = self._child or self._start()
        try:
            pipe.send_bytes(pickle.dumps(argument))
            if not pipe.poll(seconds):
                raise TimeoutError
            kind, value = json.loads(pipe.recv_bytes())
        except (TimeoutError, EOFError, OSError):
            self._stop()
            raise Exceeded from None
        if kind == FAILED:
            raise RuntimeError(value)
        return value

    def _start(self):
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=self._answer, args=(there, here), daemon=True)
        child.start()
        there.close()
        self._child = child, here
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            child, pipe = self._child
            self._child = None
            pipe.close()
            child.kill()
            child.join()

    def _answer(self, pipe, other) -> None:
        """The child: graded one by one until the parent closes its end."""
        other.close()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = used + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
        with contextlib.suppress(EOFError, OSError):
            while True:
                argument = pickle.loads(pipe.recv_bytes())  # the parent's own
                try:
                    answer = ["", self.work(argument)]
                except MemoryError:
                    os._exit(1)
                except Exception as error:
                    answer = [FAILED, f"{type(error).__name__}: {error}"]
                pipe.send_bytes(json.dumps(answer, default=_plain).encode())


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON."""
    return value.tolist()


# ---------------------------------------------------------------- LightEval


def grade(docs: Sequence, responses: Sequence, metrics: Sequence) -> tuple[list[dict], int]:
    """(what LightEval's `apply_metric` gives for every question, how many questions exceeded time or memory).

    The scores of single samples, where a metric keeps them, are put on the responses as `sample_scores`.
    """
    from lighteval.metrics import apply_metric

    def work(number: int):
        [result] = apply_metric(docs=[docs[number]], responses=[responses[number]], metrics=metrics)
        plain = {name: [bool(v) for v in x] if isinstance(x, list) else float(x) for name, x in result.items()}
        return plain, getattr(responses[number], "sample_scores", None)

    results: list[dict] = []
    exceeded = 0
    with Bounded(work) as child:
        for number, (doc, response) in enumerate(zip(docs, responses, strict=True)):
            try:
                result, response.sample_scores = child.ask(number, SECONDS * max(1, len(response.text)))
            except (Exceeded, RuntimeError):  # odd text makes an extraction raise, too
                exceeded += 1
                result = {name: value for metric in metrics for name, value in _wrong(metric, doc).items()}
                response.sample_scores = [0.0] * len(response.text)
            results.append(result)
    return results, exceeded


def warm(doc, metrics: Sequence) -> None:
    """Grade the gold answer here once: patterns compiled now are not compiled again in every child."""
    from lighteval.metrics import apply_metric
    from lighteval.models.model_output import ModelResponse

    apply_metric(docs=[doc], responses=[ModelResponse(text=doc.get_golds() * doc.num_samples)], metrics=metrics)


def _wrong(metric, doc) -> dict:
    """The lowest score; IFEval has one per instruction beside one for the prompt."""
    names = metric.metric_name if isinstance(metric.metric_name, list) else [metric.metric_name]
    instructions = len((doc.specific or {}).get("instructions_id_list", ()))
    return {name: [False] * instructions if name.startswith("inst_level") else 0.0 for name in names}


# ---------------------------------------------------------------- lm-eval


def bound_process_results(task, child: Bounded) -> Callable[[], int]:
    """Have an lm-eval task score in `child` what a model wrote; its work is `task.process_results` called with a pair.

    A question that exceeds time or memory has the value 0 in all metrics. Returns a function that counts these.
    """
    metrics = list(task.aggregation())
    exceeded = 0

    def process_results(doc: dict, results: list):
        nonlocal exceeded
        try:
            return child.ask((doc, results), SECONDS)
        except Exceeded:
            exceeded += 1
            return dict.fromkeys(metrics, 0.0)

    task.process_results = process_results
    return lambda: exceeded
