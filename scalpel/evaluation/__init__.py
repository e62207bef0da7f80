"""Evaluation of checkpoints by LightEval and lm-eval themselves, offline, all tasks of a group in one process.

questions.py checks a question set once; `evaluate` loads the harnesses once and swaps weights from checkpoint to
checkpoint. Nothing is imported before it is used: the plan reads lm_eval_files.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings


def evaluate(
    models: list[tuple[int, Path]],
    sets: dict[str, Path],
    recipe: EvaluationRecipe,
    settings: EvaluationSettings,
    out: Path,
) -> None:
    """Write scores.parquet, samples.parquet and notes.json for every (step, model directory).

    sets: task name -> what `prepare` wrote for its question set. Seeds depend on the task alone, so a checkpoint's
    scores are the same in whatever shard it is evaluated, and checkpoints are compared on the same random numbers.
    Raises UserError for a checkpoint that does not load and a task that its question set does not allow.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read at import: the harnesses' bars give way to our progress lines
    from scalpel.evaluation.run import evaluate_checkpoints

    evaluate_checkpoints(models, sets, recipe, settings, out)
