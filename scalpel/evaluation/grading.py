"""The harnesses' grading in bounded children (scalpel/grading/children.py): what a model wrote is untrusted input.

LightEval bounds its extraction with signals, which do not interrupt a big power inside Python's C code and do not bound
memory; lm-eval bounds nothing. Here each sample has its own processor time; one that exceeds it, or that makes the
scoring raise, is wrong, alone.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scalpel.grading.children import SECONDS, Children, Exceeded, Raised
from scalpel.grading.text import after_thinking

if TYPE_CHECKING:
    from lighteval.metrics.utils.metric_utils import Metric
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc
    from lm_eval.api.task import Task

HARNESS_SECONDS = 20.0  # of a sample that a harness's own code scores
EXCEEDED, RAISED = "exceeded time or memory", "raised"  # how samples that are not graded are counted


def grade(
    docs: Sequence[Doc], responses: Sequence[ModelResponse], metric: Metric, seconds: float = SECONDS
) -> tuple[list[dict], Counter[str]]:
    """(what a LightEval metric gives for every question, how many samples were not graded, by the reason).

    The score of a question is the mean of its samples', which are put on the response as `sample_scores`.
    """
    from lighteval.metrics import apply_metric

    samples = [(number, sample) for number, response in enumerate(responses) for sample in range(len(response.text))]

    def work(item: tuple[int, int]) -> dict:
        number, sample = item
        random.seed(0)  # whatever a harness draws is the same for every sample
        response = responses[number][sample]
        response.text_post_processed = [after_thinking(response.text[0])]
        [result] = apply_metric(docs=[docs[number]], responses=[response], metrics=[metric])
        return {name: [bool(v) for v in x] if isinstance(x, list) else float(x) for name, x in result.items()}

    with Children(work, seconds) as children:
        found = children.each(samples)
    lost: Counter[str] = Counter()
    scores: list[list[dict]] = [[] for _ in docs]
    for (number, _), result in zip(samples, found, strict=True):
        if isinstance(result, (Exceeded, Raised)):
            lost[EXCEEDED if isinstance(result, Exceeded) else RAISED] += 1
            result = _wrong(metric, docs[number])
        scores[number].append(result)
    return [_question(mine, response) for mine, response in zip(scores, responses, strict=True)], lost


def _question(scores: list[dict], response: ModelResponse) -> dict:
    """The mean of a question's samples; of a single one all it has."""
    if len(scores) == 1 and len(scores[0]) > 1:
        return scores[0]
    [name] = scores[0]
    response.sample_scores = [score[name] for score in scores]
    return {name: statistics.fmean(response.sample_scores)}


def warm(doc: Doc, metric: Metric) -> None:
    """Grade the gold answer here once: patterns compiled now are not compiled again in every child."""
    from lighteval.metrics import apply_metric
    from lighteval.models.model_output import ModelResponse

    apply_metric(docs=[doc], responses=[ModelResponse(text=doc.get_golds()[:1])], metrics=[metric])


def _wrong(metric: Metric, doc: Doc) -> dict:
    """The lowest score; IFEval has one per instruction beside one for the prompt."""
    names = metric.metric_name if isinstance(metric.metric_name, list) else [metric.metric_name]
    instructions = len((doc.specific or {}).get("instructions_id_list", ()))
    return {name: [False] * instructions if name.startswith("inst_level") else 0.0 for name in names}


# ---------------------------------------------------------------- lm-eval


def bound_process_results(task: Task, child: Children) -> Callable[[], Counter[str]]:
    """Have an lm-eval task score in `child` what a model wrote; its work is `task.process_results` called with a pair.

    A question that exceeds time or memory has the value 0 in all metrics. Returns a function that counts these.
    """
    metrics = list(task.aggregation())
    lost: Counter[str] = Counter()

    def process_results(doc: dict, results: list) -> dict[str, Any]:
        try:
            return child.one((doc, results))
        except Exceeded:
            lost[EXCEEDED] += 1
            return dict.fromkeys(metrics, 0.0)

    task.process_results = process_results
    return lambda: lost
