"""What no machine can hold, told before a run by arithmetic: memory that a job needs at least, and the disk.

Memory is a lower bound: float32 weights, gradients and Adam's two moments, and the logits of one batch. It is compared
with what the scale reserves for the stage, of stages without a GPU. The disk's need is the estimate of `make
preflight`, which is within a factor of `MARGIN`.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator

from scalpel.artifact.step import Step
from scalpel.cost.shape import shape_of
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.plan import Plan

MARGIN = 3  # of estimates
TEXT_BYTES = 500  # of a generated row or text, at least
ADAM_BYTES = 12  # of each parameter that trains, beside its 4: gradient and two moments
MB = 10**6


def refuse_what_is_too_large(plan: Plan) -> None:
    """UserError for the first job that needs more memory than it may have."""
    for step in plan.missing():
        for needed, what, fields in _memory(step, plan):
            there = plan.resources_of_stage(step.stage).mem_mb
            if needed > there * MB:
                raise UserError(
                    f"{step.stage} {step.name}: {what} needs {needed / 1e9:,.1f} GB at least, resources.{step.stage} "
                    f"reserves {there / 1000:,.1f} GB; lower {fields}, or raise resources.{step.stage}.mem_mb."
                )


def _memory(step: Step, plan: Plan) -> Iterator[tuple[float, str, str]]:
    """(bytes, of what, by which fields) that a job needs at least."""
    recipe = step.recipe
    if step.stage == "toy":
        rows = recipe["train_rows"] + recipe["pretraining_samples"]
        yield rows * TEXT_BYTES, f"{rows:,} rows and texts", "world.train_rows or world.pretraining_samples"
    elif step.stage == "base" and recipe["kind"] == "toy":
        shape, _ = shape_of(step, plan.root)
        logits = 8 * recipe["batch_size"] * recipe["sequence_length"] * shape.vocabulary  # and their gradient
        fields = "its layers, sizes, batch_size or sequence_length"
        yield (4 + ADAM_BYTES) * shape.parameters + logits, f"training {shape.parameters:,} parameters", fields
    elif step.stage == "train" and not plan.resources_of_stage("train").gpus:
        try:
            shape, _ = shape_of(step.inputs["base"], plan.root)
        except UserError:
            return  # a model that is not fetched yet
        trained = shape.trained(METHODS[recipe["method"]].Recipe.of_identity(recipe).trainable)
        needed = (4 * shape.parameters + ADAM_BYTES * trained) / (step.settings["ranks"] * step.settings["nodes"])
        yield needed, f"training {shape.parameters:,} parameters", "the model's size"


def refuse_a_small_disk(plan: Plan, digests: Collection[str]) -> None:
    """UserError when the disk of results/ cannot hold what these steps write, one run after the other."""
    from scalpel.cost.estimate import estimate

    try:
        least = estimate(plan, digests).least / MARGIN
    except UserError:
        return  # preflight says why there is no estimate
    place = plan.root / "results"
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if least > free:
        raise UserError(
            f"this start would write some {least * MARGIN / 1e9:,.0f} GB with one run after the other, "
            f"{free / 1e9:,.0f} GB are free at results/; `make preflight` tells what is so large: lower it, free some, "
            "or make results a link to a larger disk."
        )
