"""Supervised fine-tuning on one trace of each question (paper section 3.2): declaration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scalpel.config.training import MethodRecipe
from scalpel.config.types import Positive, Tokens, later
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
    # Questions of an epoch beyond its last whole step: in a step with the next epoch's first ones, or in none. The
    # authors' run has 462 = 3 x floor(69,132 / 448) steps, so that their rest is in none: deduced from that number.
    epoch_rest: Literal["kept", "dropped"] = later("kept", as_before="kept")
    loss_on: Literal["all", "completion"] = "all"
    # Bugs of frameworks, emulated (scalpel/methods/faults.py): which micro-batches of each rank reach the optimizer,
    # and what the loss is a mean of: all tokens of the step; those of a micro-batch of one rank, then micro-batches;
    # those of a rank, then ranks. Ranks and micro-batches are those of the emulated layout.
    micro_batches: Literal["all", "first_and_last", "first"] = later("all", as_before="all")
    loss_mean: Literal["token", "group", "rank"] = later("token", as_before="token")
    emulated_ranks: Annotated[int, Field(gt=0, le=10**4)] = later(1, as_before=1)
    emulated_accumulation: Annotated[int, Field(gt=0, le=10**4)] = later(1, as_before=1)

    @property
    def right(self) -> bool:
        """Whether the objective is the mean over all trained tokens of the step."""
        return self.micro_batches == "all" and self.loss_mean == "token"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        if self.epoch_rest == "dropped" and (self.steps or self.matching == "tokens"):
            raise ValueError("`epoch_rest: dropped` goes with `epochs` and steps of so many questions or sequences")
        return self

    @model_validator(mode="after")
    def _layout(self) -> Self:
        """A layout on which the bug shows; none where there is no bug."""
        ranks, accumulation = self.emulated_ranks, self.emulated_accumulation
        if self.right and ranks * accumulation > 1:
            raise ValueError("`emulated_ranks` and `emulated_accumulation` go with `micro_batches` or `loss_mean`")
        least = {"all": 1, "first": 2, "first_and_last": 3}[self.micro_batches]
        if accumulation < least:
            raise ValueError(f"micro_batches {self.micro_batches} needs `emulated_accumulation` of {least} or more")
        if self.loss_mean == "rank" and ranks < 2:
            raise ValueError("loss_mean rank needs `emulated_ranks` of 2 or more")
        if self.loss_mean == "group" and ranks * accumulation < 2:
            raise ValueError("loss_mean group needs `emulated_ranks` or `emulated_accumulation` of 2 or more")
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
            assert recipe.epochs is not None
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
        if recipe.epoch_rest == "dropped":
            return rows // sizes[recipe.matching] * min(epochs, recipe.epochs)
        return -(-rows * min(epochs, recipe.epochs) // sizes[recipe.matching])  # the last step takes what is left
