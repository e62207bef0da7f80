"""Supervised fine-tuning on one trace of each question (paper section 3.2): declaration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scalpel.config.training import MethodRecipe
from scalpel.config.types import Positive, Tokens
from scalpel.cost.amount import HALF, Amount, product
from scalpel.methods.method import Method, RowSizes, Work


class SFTRecipe(MethodRecipe):
    method: Literal["sft"] = "sft"
    matching: Literal["sequences", "questions", "tokens"] = "sequences"
    # sequences: `sequences_per_step` different questions a step, as many as GRPO has completions (the paper)
    # questions: the very questions of GRPO's step, `questions_per_step` of them
    # tokens: questions of the order until their tokens reach `tokens_per_step`
    sequences_per_step: Annotated[int, Field(gt=0, le=10**6)] = 112
    questions_per_step: Annotated[int, Field(gt=0, le=10**6)] = 4
    tokens_per_step: Positive = 168_000
    epochs: Annotated[int, Field(gt=0, le=10**4)] | None = None  # exactly one of epochs and steps
    steps: Positive | None = None
    max_tokens: Tokens = 4096
    loss_on: Literal["all", "completion"] = "all"

    @model_validator(mode="after")
    def _one_length(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class SFT(Method):
    name = "sft"
    Recipe = SFTRecipe
    samples = False
    trainer = "scalpel.methods.sft_trainer"

    @staticmethod
    def work(recipe: SFTRecipe, rows: RowSizes) -> Work:
        mean = Amount.of(rows.tokens) if rows.tokens else product(recipe.max_tokens, HALF)
        if not recipe.steps:
            return Work(product(rows.count, recipe.epochs, mean))
        per_step = {
            "sequences": product(recipe.sequences_per_step, mean),
            "questions": product(recipe.questions_per_step, mean),
            "tokens": Amount.of(recipe.tokens_per_step),
        }[recipe.matching]
        return Work(product(recipe.steps, per_step))

    @staticmethod
    def accumulation(recipe: SFTRecipe, sequences_per_device: int, ranks: int) -> int:
        """By tokens, as if every sequence had half of the most tokens."""
        by_tokens = round(recipe.tokens_per_step / (HALF * recipe.max_tokens))
        sequences = {
            "sequences": recipe.sequences_per_step, "questions": recipe.questions_per_step, "tokens": by_tokens,
        }[recipe.matching]  # fmt: skip
        return max(1, -(-sequences // (sequences_per_device * ranks)))

    @staticmethod
    def steps_fed(recipe: SFTRecipe, rows: int, epochs: int) -> int | None:
        sizes = {"sequences": recipe.sequences_per_step, "questions": recipe.questions_per_step}
        if recipe.matching not in sizes:
            return None
        if recipe.epochs is None:
            return rows * epochs // sizes[recipe.matching]
        return -(-rows * min(epochs, recipe.epochs) // sizes[recipe.matching])  # the last step takes what is left
