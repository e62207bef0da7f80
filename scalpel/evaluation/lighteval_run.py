"""LightEval's Pipeline over local tasks and one engine, run again for every checkpoint."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import torch

from scalpel.evaluation import lighteval_tasks  # before anything else of LightEval: it lifts a version check
from scalpel.evaluation.grading import grade, warm
from scalpel.evaluation.lighteval_engine import LightevalEngine

if TYPE_CHECKING:
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc, SamplingMethod


class LocalPipeline:
    def __init__(self, tasks: dict[str, lighteval_tasks.LocalTask], model: LightevalEngine):
        with torch.enable_grad():  # its transformers engine, when imported, turns gradients off for the whole process
            from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
        from lighteval.logging.evaluation_tracker import EvaluationTracker
        from lighteval.metrics import apply_metric
        from lighteval.tasks.requests import SamplingMethod

        class Prepared(Pipeline):
            """Pipeline whose tasks are given instead of looked up in LightEval's registry."""

            def _init_tasks_and_requests(self, tasks: dict[str, lighteval_tasks.LocalTask]) -> None:
                self.registry = None
                self.tasks_dict = tasks
                self.documents_dict = lighteval_tasks.documents(tasks)
                self.sampling_docs: dict[SamplingMethod, list[Doc]] = {}
                for docs in self.documents_dict.values():
                    for doc in docs:
                        for method in doc.sampling_methods:
                            self.sampling_docs.setdefault(method, []).append(doc)
                for doc in self.sampling_docs.get(SamplingMethod.GENERATIVE, ()):
                    if doc.id == "0":
                        [metric] = self.tasks_dict[doc.task_name].metrics
                        warm(doc, metric)
                self.evaluation_tracker.task_config_logger.log(self.tasks_dict)

            def _compute_metrics(self, sampling_method_responses: dict[SamplingMethod, list[ModelResponse]]) -> None:
                self.not_graded: dict[str, dict[str, int]] = {}
                for method, responses in sampling_method_responses.items():
                    for name, task in self.tasks_dict.items():
                        mine = [n for n, doc in enumerate(self.sampling_docs[method]) if doc.task_name == name]
                        docs = [self.sampling_docs[method][n] for n in mine]
                        answers = [responses[n] for n in mine]
                        [metric] = task.metrics
                        if not mine or metric.category != method:
                            continue
                        if method == SamplingMethod.LOGPROBS:  # numbers of our own: no need of a bounded child
                            outputs = apply_metric(docs=docs, responses=answers, metrics=[metric])
                        else:
                            outputs, lost = grade(docs, answers, metric, task.seconds)
                            if lost:
                                self.not_graded[name] = dict(lost)
                        for output, doc, answer in zip(outputs, docs, answers, strict=True):
                            self.evaluation_tracker.metrics_logger.log(name, output)
                            self.evaluation_tracker.details_logger.log(name, doc, answer, output)

        self._tracker = lambda: EvaluationTracker(output_dir=tempfile.gettempdir(), save_details=False)
        parameters = PipelineParameters(  # what is the answer of a completion, `grade` says
            launcher_type=ParallelismManager.NONE, bootstrap_iters=0, remove_reasoning_tags=False
        )
        self.pipeline = Prepared(tasks, parameters, self._tracker(), model=model)

    @property
    def not_graded(self) -> dict[str, dict[str, int]]:
        """Task -> how many samples were not graded, by the reason, of the last checkpoint."""
        return self.pipeline.not_graded

    def evaluate(self) -> list[dict]:
        """Rows of samples.parquet and what `aggregate` needs, for the weights the engine holds now."""
        tracker = self.pipeline.evaluation_tracker = self._tracker()
        tracker.task_config_logger.log(self.pipeline.tasks_dict)
        self.pipeline.evaluate()
        rows = []
        for full_name, details in tracker.details_logger.details.items():
            group = full_name.split("|")[0]
            task = group.split(":")[0]
            for detail in sorted(details, key=lambda d: int(d.doc.id)):
                rows += _rows(task, group, self.pipeline.tasks_dict[full_name].question(detail.doc), detail)
        return rows


def _rows(task: str, group: str, question: int, detail: Any) -> list[dict]:
    """One row per metric and sample of one question."""
    doc, response = detail.doc, detail.model_response
    common = {
        "task": task,
        "group": group,
        "question": question,
        "prompt": response.input,
        "gold": doc.get_golds()[0] if doc.choices else "",
    }
    if response.logprobs:
        best = max(range(len(response.logprobs)), key=response.logprobs.__getitem__)
        choice = {"completion": doc.choices[best], "choice_logprobs": list(response.logprobs), "sample": 0}
        return [common | choice | {"metric": name, "score": float(value)} for name, value in detail.metric.items()]
    rows = []
    for name, value in detail.metric.items():
        metric = name.split(":")[0]
        scores = getattr(response, "sample_scores", None) if metric.startswith("avg@") else None
        if isinstance(value, list):  # IFEval's instruction level: one score per instruction
            rows += [
                common | {"metric": metric, "sample": i, "completion": response.text[0], "score": float(item)}
                for i, item in enumerate(value)
            ]
        elif scores:
            rows += [
                common | {"metric": "avg@n", "sample": i, "completion": text, "score": score}
                for i, (text, score) in enumerate(zip(response.text, scores, strict=True))
            ]
        else:
            rows.append(common | {"metric": metric, "sample": 0, "completion": response.text[0], "score": float(value)})
    return rows
