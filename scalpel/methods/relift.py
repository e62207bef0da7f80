"""ReLIFT: GRPO, and SFT updates on the traces of questions that nobody answered (arXiv 2506.07527): declaration.

Defaults: examples/math-7b/train.sh and relift/verl/verl/relift of TheRoadQaQ/ReLIFT at eb95454.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.training import TrainSettings
from scalpel.config.types import Positive, Rate
from scalpel.cost.amount import product
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import (
    MixedMethod,
    MixedRecipe,
    Weight,
    check_second_optimizer,
    mixed_work,
    trace_tokens,
)

UPDATES = 138 / 500  # SFT updates for each batch of rollouts, as "SFT-then-RL" counted them (its appendix B)


class InterleavedRecipe(MixedRecipe):
    """After a batch of rollouts was learnt from, and when the buffer holds `buffer_size` questions, one SFT update is
    made on the newest of them, by an AdamW of its own."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 0.7  # of the policy updates
    buffer_size: Positive = 128
    sft_learning_rate: Rate = 1e-6
    sft_weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    sft_max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    sft_entropy_coefficient: Weight = 1e-3


class ReLIFTRecipe(InterleavedRecipe):
    method: Literal["relift"] = "relift"


def interleaved_work(recipe: InterleavedRecipe, rows: RowSizes) -> Work:
    work = mixed_work(recipe, rows, recipe.generations, 0)
    batches = product(recipe.steps) / (recipe.updates * recipe.iterations)
    traces = product(batches, round(UPDATES, 4), recipe.buffer_size, trace_tokens(recipe, rows))
    return Work(work.trained + traces, work.written, work.scored)


class InterleavedMethod(MixedMethod):
    state_bytes = 24  # a second optimizer's moments
    work = staticmethod(interleaved_work)

    @staticmethod
    def check(recipe: InterleavedRecipe, settings: TrainSettings) -> None:
        MixedMethod.check(recipe, settings)
        check_second_optimizer(settings, recipe.method)


class ReLIFT(InterleavedMethod):
    name = "relift"
    Recipe = ReLIFTRecipe
    trainer = "scalpel.methods.relift_trainer"
