"""What the train stage calls: a train step's job, opened and handed to its method's trainer."""

from __future__ import annotations

from importlib import import_module

from scalpel.artifact.files import RECIPE, read_json
from scalpel.artifact.job import Job
from scalpel.checkpoints import last_model
from scalpel.config.training import Trainable, TrainSettings
from scalpel.methods import METHODS
from scalpel.methods.loop import TrainingRun
from scalpel.methods.tracking import check_tracking


def train_job(job: Job, settings: TrainSettings) -> None:
    """Carry out one run, or resume an interrupted one; the finished files are the same, bit by bit.

    Writes to the job's directory checkpoints/ and checkpoints.json, log.parquet, questions.parquet, trained.json and,
    for methods that sample, rollouts.parquet; leaves its resumable state in state/.
    """
    check_tracking(settings.tracking)
    method = METHODS[job.recipe["method"]]
    recipe = method.Recipe.of_identity(job.recipe)
    trainable = recipe.trainable
    if "layers" in job.inputs:
        from scalpel.analysis.trace import layers_above

        assert trainable.freeze_mlp_above is not None
        layers = layers_above(job.file("layers", "aie.parquet"), trainable.freeze_mlp_above)
        trainable = Trainable(freeze_mlp_layers=tuple(layers))
    run = TrainingRun(
        recipe=recipe,
        base=job.inputs["base"] / "model",
        start=last_model(job.inputs, "start"),
        kept=job.file("data", "kept.parquet"),
        order=job.file("order", "order.parquet"),
        seed=read_json(job.inputs["order"] / RECIPE)["recipe"]["seed"],
        trainable=trainable,
        out=job.directory,
        settings=settings,
    )
    import_module(method.trainer).train(run)
