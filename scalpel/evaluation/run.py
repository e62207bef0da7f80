"""One process: load the harnesses and the questions once, then every checkpoint on every task."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.artifact.files import write_atomically
from scalpel.chat import control_text, load_tokenizer
from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings
from scalpel.evaluation.question_set import QuestionSet, open_set
from scalpel.evaluation.quiet import quiet
from scalpel.evaluation.tasks import LM_EVAL, check_task
from scalpel.inference import EngineSettings, open_engine
from scalpel.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        ("group", pa.string()),
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
    models: list[tuple[int, Path]],
    sets: dict[str, Path],
    recipe: EvaluationRecipe,
    settings: EvaluationSettings,
    out: Path,
) -> None:
    import torch

    torch.set_num_threads(settings.threads)
    scores: list[dict] = []
    notes: dict[str, Any] = {}
    opened = {name: open_set(sets[name]) for name in recipe.tasks}
    for name, questions in opened.items():
        check_task(name, recipe.tasks[name], questions.format, len(questions.examples()))
    tokenizer = load_tokenizer(models[0][1])
    opened = {name: replace(questions, control=control_text(tokenizer)) for name, questions in opened.items()}
    left_out = {name: count for name in opened if (count := opened[name].left_out(recipe.tasks[name].limit))}
    if left_out:
        notes["questions_left_out_for_special_tokens"] = left_out
    with tempfile.TemporaryDirectory(prefix="scalpel_") as folder, quiet():
        os.environ.setdefault("HF_DATASETS_CACHE", folder)  # lm-eval reads parquet through datasets' cache
        harnesses = Harnesses(models[0][1], tokenizer, opened, recipe, settings, Path(folder))
        with pq.ParquetWriter(out / "samples.parquet", SAMPLES, compression="zstd") as writer:
            for number, (step, directory) in enumerate(track(models, "evaluation: checkpoint")):
                if number:
                    harnesses.engine.load(directory)
                rows, mine, notes[str(step)] = harnesses.evaluate()
                scores += [{"step": step, **score} for score in mine]
                columns = set(SAMPLES.names)
                table = [{"step": step, **{k: v for k, v in row.items() if k in columns}} for row in rows]
                writer.write_table(pa.Table.from_pylist(table, SAMPLES))
    pq.write_table(pa.Table.from_pylist(scores, SCORES), out / "scores.parquet", compression="zstd")
    if any(questions.format == "ifeval" for questions in opened.values()):
        from scalpel.evaluation.sentences import provide_punkt

        notes["ifeval_sentences"] = provide_punkt()
    write_atomically(out / "notes.json", json.dumps(notes, indent=1) + "\n")


class Harnesses:
    """The engine, and LightEval and lm-eval on it, each with its share of the tasks."""

    def __init__(
        self,
        model: Path,
        tokenizer: PreTrainedTokenizerBase,
        sets: dict[str, QuestionSet],
        recipe: EvaluationRecipe,
        settings: EvaluationSettings,
        folder: Path,
    ):
        """folder: temporary files of the harnesses."""
        tasks = {name: (recipe.tasks[name], sets[name]) for name in recipe.tasks}
        mmlu_pro = {
            name: task
            for name, task in tasks.items()
            if task[1].format == "mmlu_pro" and task[0].formulation != "written"
        }
        lm_eval = {name: task for name, task in tasks.items() if task[1].format == LM_EVAL}
        local = {name: task for name, task in tasks.items() if name not in mmlu_pro | lm_eval}
        built = {}
        if local:  # refused tasks are named before the model is loaded
            from scalpel.evaluation import lighteval_tasks

            built = lighteval_tasks.build(local, recipe.answer_rule)
        engine = EngineSettings(batch_size=settings.batch_size, memory_fraction=settings.memory_fraction)
        self.engine = open_engine(recipe.inference, model, engine)
        self.adaptors = []
        self.others: list[Any]
        self.pipeline, self.others = None, []
        if local:
            from scalpel.evaluation.lighteval_engine import LightevalEngine
            from scalpel.evaluation.lighteval_run import LocalPipeline

            self.adaptors.append(LightevalEngine(self.engine, tokenizer, recipe))
            self.pipeline = LocalPipeline(built, self.adaptors[-1])
        if mmlu_pro or lm_eval:
            from scalpel.evaluation.lm_eval_engine import LMEvalEngine
            from scalpel.evaluation.lm_eval_tasks import LMEvalTask
            from scalpel.evaluation.mmlu_pro import MMLUPro

            self.adaptors.append(LMEvalEngine(self.engine, tokenizer, recipe.seed))
            for group, kind in ((mmlu_pro, MMLUPro), (lm_eval, LMEvalTask)):
                for name, (task, questions) in group.items():
                    self.others.append(kind(name, task, questions, self.adaptors[-1], folder))

    def evaluate(self) -> tuple[list[dict], list[dict], dict]:
        """(rows of samples.parquet, rows of scores.parquet, notes) of the weights the engine holds now."""
        for adaptor in self.adaptors:
            adaptor.beyond_positions.clear()
        rows = self.pipeline.evaluate() if self.pipeline else []
        not_graded = dict(self.pipeline.not_graded) if self.pipeline else {}
        scores: list[dict] = []
        for task in self.others:
            mine = task.evaluate()
            rows += mine
            scores += getattr(task, "scores", [])  # lm-eval's own of lm-eval's tasks
            if getattr(task, "not_graded", None):
                not_graded[task.name] = task.not_graded
        theirs = {score["task"] for score in scores}
        scores = aggregate([row for row in rows if row["task"] not in theirs]) + scores
        notes = {
            "prompts_beyond_the_models_positions": {
                name: count for adaptor in self.adaptors for name, count in adaptor.beyond_positions.items()
            },
            "samples_not_graded": not_graded,
        }
        return rows, scores, notes


def aggregate(rows: list[dict]) -> list[dict]:
    """Scores with standard errors, from per-sample rows.

    A question's score is the mean of its samples; the standard error is that of the mean over questions,
    s / sqrt(n). MMLU is the unweighted mean over its subjects, as LightEval reports it, with the standard
    error sqrt(sum of squares) / subjects; IFEval's instruction level is the mean over instructions, with the error of
    a ratio of sums over prompts, as the instructions of one prompt share an answer.
    """
    found: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        groups = found.setdefault((row["task"], row["metric"]), {})
        groups.setdefault(row["group"], {}).setdefault(row["question"], []).append(row["score"])
    scores = []
    for (task, metric), groups in found.items():
        means, errors, questions, samples = [], [], 0, 0
        for answered in groups.values():
            count = len(answered)
            if metric.startswith("inst_level"):
                each = sum(map(len, answered.values())) / count  # instructions a prompt
                mean = sum(map(sum, answered.values())) / count / each
                values = [mean + (sum(scores_) - mean * len(scores_)) / each for scores_ in answered.values()]
            else:
                values = [statistics.fmean(scores_) for scores_ in answered.values()]
            means.append(statistics.fmean(values))
            errors.append(statistics.stdev(values) / math.sqrt(count) if count > 1 else 0.0)
            questions += count
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
