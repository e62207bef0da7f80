"""Training methods, one file each, registered by name. `train` is what the train stage calls."""

from importlib import import_module
from pathlib import Path

from scalpel.artifact import Job
from scalpel.config import METHODS, GRPORecipe, SFTRecipe, TrainSettings

RECIPES = {"grpo": GRPORecipe, "sft": SFTRecipe}


def train_job(job: Job, settings: TrainSettings) -> None:
    """`train` with the recipe and the inputs of a train step's job."""
    recipe = RECIPES[job.recipe["method"]].model_validate(job.recipe)
    data, order = job.inputs["data"] / "kept.parquet", job.inputs["order"] / "order.parquet"
    train(recipe, job.inputs["base"] / "model", data, order, job.directory, settings)


def train(
    recipe: SFTRecipe | GRPORecipe, base: Path, kept: Path, order: Path, out: Path, settings: TrainSettings
) -> None:
    """Carry out one run, or go on with an interrupted one; the finished files are the same, bit by bit.

    base: a model directory; kept: kept.parquet of the data stage; order: order.parquet. Writes to `out`
    checkpoints/ and checkpoints.json, log.parquet, questions.parquet, trained.json and, under GRPO,
    rollouts.parquet; leaves its resumable state in out/state.
    """
    assert recipe.method in METHODS
    import_module(f"scalpel.methods.{recipe.method}").train(recipe, base, kept, order, out, settings)
