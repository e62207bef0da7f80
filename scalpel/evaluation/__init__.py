"""Evaluation of checkpoints by LightEval and lm-eval themselves, offline, all tasks in one process.

`prepare` validates question files once; `evaluate` loads the harnesses once and swaps weights from
checkpoint to checkpoint. Neither harness is imported before `evaluate`.
"""

import os
from pathlib import Path

from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings
from scalpel.evaluation.questions import prepare

__all__ = ["evaluate", "prepare"]


def evaluate(
    models: list[tuple[int, Path]], data: Path, recipe: EvaluationRecipe, settings: EvaluationSettings, out: Path
) -> None:
    """Write scores.parquet, samples.parquet and notes.json for every (step, model directory).

    data: what `prepare` wrote. Seeds depend on the task alone, so a checkpoint's scores are the same in
    whatever shard it is evaluated, and different checkpoints are compared on the same random numbers.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read at import: the harnesses' bars give way to our progress lines
    from scalpel.evaluation.run import evaluate_checkpoints

    evaluate_checkpoints(models, data, recipe, settings, out)
