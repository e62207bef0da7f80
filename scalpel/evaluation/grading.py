"""LightEval's metrics in a bounded child process: what a model wrote is untrusted input.

LightEval bounds its extraction with signals, which do not interrupt a big power inside Python's C code and do
not bound memory. A forked child grades question by question and is replaced when one exceeds its time or memory;
that question counts as wrong. Only JSON comes back.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from collections.abc import Sequence
from pathlib import Path

from lighteval.metrics import apply_metric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc

SECONDS = 20.0  # for one completion
MEMORY = 4 << 30  # bytes the child may allocate on top of what the parent holds


def grade(docs: Sequence[Doc], responses: Sequence[ModelResponse], metrics: Sequence) -> tuple[list[dict], int]:
    """(what `apply_metric` gives for every question, how many questions exceeded time or memory).

    The scores of single samples, where a metric keeps them, are put on the responses as `sample_scores`.
    """
    results: list[dict] = []
    exceeded = 0
    while len(results) < len(docs):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        start = len(results)
        child = multiprocessing.get_context("fork").Process(
            target=_grade_from, args=(start, docs, responses, metrics, sender), daemon=True
        )
        child.start()
        sender.close()
        try:
            while len(results) < len(docs):
                response = responses[len(results)]
                if not receiver.poll(SECONDS * max(1, len(response.text))):
                    raise TimeoutError
                result, response.sample_scores = json.loads(receiver.recv_bytes())
                results.append(result)
        except (TimeoutError, EOFError, ConnectionError):
            exceeded += 1
            wrong = {name: value for metric in metrics for name, value in _wrong(metric, docs[len(results)]).items()}
            responses[len(results)].sample_scores = [0.0] * len(responses[len(results)].text)
            results.append(wrong)
        finally:
            receiver.close()
            child.kill()
            child.join()
    return results, exceeded


def warm(doc: Doc, metrics: Sequence) -> None:
    """Grade the gold answer here once: patterns compiled now are not compiled again in every child."""
    apply_metric(docs=[doc], responses=[ModelResponse(text=doc.get_golds() * doc.num_samples)], metrics=metrics)


def _grade_from(start: int, docs, responses, metrics, sender) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
    for doc, response in zip(docs[start:], responses[start:], strict=True):
        [result] = apply_metric(docs=[doc], responses=[response], metrics=metrics)
        plain = {name: [bool(v) for v in x] if isinstance(x, list) else float(x) for name, x in result.items()}
        sender.send_bytes(json.dumps([plain, getattr(response, "sample_scores", None)]).encode())


def _wrong(metric, doc: Doc) -> dict:
    """The lowest score; IFEval has one per instruction beside one for the prompt."""
    names = metric.metric_name if isinstance(metric.metric_name, list) else [metric.metric_name]
    instructions = len((doc.specific or {}).get("instructions_id_list", ()))
    return {name: [False] * instructions if name.startswith("inst_level") else 0.0 for name in names}
