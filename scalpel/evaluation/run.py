"""One process: load the harnesses and the questions once, then every checkpoint on every task."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from scalpel.artifact.files import write_atomically
from scalpel.config import LMEVAL_TASKS, EvaluationRecipe, EvaluationSettings
from scalpel.evaluation import lighteval_tasks  # before anything else of LightEval: it lifts a version check
from scalpel.evaluation.engine import Engine, quiet
from scalpel.evaluation.grading import grade, warm
from scalpel.evaluation.mmlu_pro import MMLUPro
from scalpel.progress import track

SCORES = pa.schema(
    [
        ("step", pa.int64()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("questions", pa.int64()),
        ("samples", pa.int64()),
    ]
)
SAMPLES = pa.schema(
    [
        ("step", pa.int64()),
        ("task", pa.string()),
        ("question", pa.int64()),
        ("sample", pa.int64()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("gold", pa.string()),
        ("metric", pa.string()),
        ("score", pa.float64()),
        ("choice_logprobs", pa.list_(pa.float64())),
    ]
)


def evaluate_checkpoints(
    models: list[tuple[int, Path]], data: Path, recipe: EvaluationRecipe, settings: EvaluationSettings, out: Path
) -> None:
    torch.set_num_threads(settings.threads)
    local = {name: task for name, task in recipe.tasks.items() if name not in LMEVAL_TASKS}
    scores: list[dict] = []
    notes: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="scalpel_") as folder, quiet():
        os.environ.setdefault("HF_DATASETS_CACHE", folder)  # lm-eval reads parquet through datasets' cache
        engine = Engine(models[0][1], recipe, settings)
        pipeline = LocalPipeline(lighteval_tasks.build(local, data), engine) if local else None
        pro = MMLUPro(recipe.tasks["mmlu_pro"], data, engine, Path(folder)) if "mmlu_pro" in recipe.tasks else None
        with pq.ParquetWriter(out / "samples.parquet", SAMPLES, compression="zstd") as writer:
            for step, directory in track(models, "evaluation: checkpoint"):
                engine.load(directory)
                rows = pipeline.evaluate_checkpoint() if pipeline else []
                if pro:
                    rows += [
                        row | {"task": "mmlu_pro", "group": "mmlu_pro", "metric": "acc", "sample": 0}
                        for row in pro.evaluate()
                    ]
                scores += [{"step": step, **score} for score in aggregate(rows)]
                columns = set(SAMPLES.names)
                table = [{"step": step, **{k: v for k, v in row.items() if k in columns}} for row in rows]
                writer.write_table(pa.Table.from_pylist(table, SAMPLES))
                notes[str(step)] = {
                    "prompts_beyond_the_models_positions": dict(engine.beyond_positions),
                    "questions_whose_grading_exceeded_time_or_memory": pipeline.pipeline.not_graded if pipeline else {},
                }
    pq.write_table(pa.Table.from_pylist(scores, SCORES), out / "scores.parquet", compression="zstd")
    if "ifeval" in recipe.tasks:
        from scalpel.evaluation.sentences import provide_punkt

        notes["ifeval_sentences"] = provide_punkt()
    write_atomically(out / "notes.json", json.dumps(notes, indent=1) + "\n")


class LocalPipeline:
    """LightEval's Pipeline over local tasks and one engine, run again for every checkpoint."""

    def __init__(self, tasks: dict, engine: Engine):
        with torch.enable_grad():  # its transformers engine, when imported, turns gradients off for the whole process
            from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
        from lighteval.logging.evaluation_tracker import EvaluationTracker
        from lighteval.metrics import apply_metric
        from lighteval.tasks.requests import SamplingMethod

        class Prepared(Pipeline):
            """Pipeline whose tasks are given instead of looked up in LightEval's registry."""

            def _init_tasks_and_requests(self, tasks):
                self.registry = None
                self.tasks_dict = tasks
                self.documents_dict = lighteval_tasks.documents(tasks)
                self.sampling_docs = {}
                for docs in self.documents_dict.values():
                    for doc in docs:
                        for method in doc.sampling_methods:
                            self.sampling_docs.setdefault(method, []).append(doc)
                for doc in self.sampling_docs.get(SamplingMethod.GENERATIVE, ()):
                    if doc.id == "0":
                        warm(doc, self.tasks_dict[doc.task_name].metrics)
                self.evaluation_tracker.task_config_logger.log(self.tasks_dict)

            def _compute_metrics(self, sampling_method_responses):
                self.not_graded = {}
                for method, responses in sampling_method_responses.items():
                    for name, task in self.tasks_dict.items():
                        mine = [n for n, doc in enumerate(self.sampling_docs[method]) if doc.task_name == name]
                        docs = [self.sampling_docs[method][n] for n in mine]
                        answers = [responses[n] for n in mine]
                        metrics = [metric for metric in task.metrics if metric.category == method]
                        if method == SamplingMethod.LOGPROBS:  # numbers of our own: no need of a bounded child
                            outputs = apply_metric(docs=docs, responses=answers, metrics=metrics)
                        else:
                            outputs, exceeded = grade(docs, answers, metrics)
                            if exceeded:
                                self.not_graded[name] = exceeded
                        for output, doc, answer in zip(outputs, docs, answers, strict=True):
                            self.evaluation_tracker.metrics_logger.log(name, output)
                            self.evaluation_tracker.details_logger.log(name, doc, answer, output)

        self._tracker = lambda: EvaluationTracker(output_dir=tempfile.gettempdir(), save_details=False)
        # Metrics read what is left when <think>...</think> is removed, LightEval's default.
        parameters = PipelineParameters(launcher_type=ParallelismManager.NONE, bootstrap_iters=0)
        self.pipeline = Prepared(tasks, parameters, self._tracker(), model=engine)

    def evaluate_checkpoint(self) -> list[dict]:
        """Rows of samples.parquet and what `aggregate` needs, for the weights the engine holds now."""
        tracker = self.pipeline.evaluation_tracker = self._tracker()
        self.pipeline.evaluation_tracker.task_config_logger.log(self.pipeline.tasks_dict)
        self.pipeline.evaluate()
        rows = []
        for full_name, details in tracker.details_logger.details.items():
            group = full_name.split("|")[0]
            task = group.split(":")[0]
            for detail in sorted(details, key=lambda d: int(d.doc.id)):
                rows += _rows(task, group, self.pipeline.tasks_dict[full_name].question(detail.doc), detail)
        return rows


def _rows(task: str, group: str, question: int, detail) -> list[dict]:
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


def aggregate(rows: list[dict]) -> list[dict]:
    """Scores with standard errors, from per-sample rows.

    A question's score is the mean of its samples; the standard error is that of the mean over questions,
    s / sqrt(n). MMLU is the unweighted mean over its subjects, as LightEval reports it, with the standard
    error sqrt(sum of squares) / subjects; IFEval's instruction level is the mean over instructions.
    """
    found: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        groups = found.setdefault((row["task"], row["metric"]), {})
        groups.setdefault(row["group"], {}).setdefault(row["question"], []).append(row["score"])
    scores = []
    for (task, metric), groups in found.items():
        means, errors, questions, samples = [], [], 0, 0
        for answered in groups.values():
            by_instruction = metric.startswith("inst_level")
            values = (
                [score for scores_ in answered.values() for score in scores_]
                if by_instruction
                else [statistics.fmean(scores_) for scores_ in answered.values()]
            )
            means.append(statistics.fmean(values))
            errors.append(statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)
            questions += len(answered)
            samples += sum(map(len, answered.values()))
        scores.append(
            {
                "task": task,
                "metric": metric,
                "value": statistics.fmean(means),
                "stderr": math.sqrt(sum(error**2 for error in errors)) / len(errors),
                "questions": questions,
                "samples": samples,
            }
        )
    return scores
