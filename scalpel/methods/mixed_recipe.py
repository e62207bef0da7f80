"""What methods have in common that learn from their own completions and from expert traces, and their arithmetic.

Defaults are those of the methods' own code, most of it forks of verl: LUFFY (ElliottYan/LUFFY at 01f4ae0), ReLIFT
(TheRoadQaQ/ReLIFT at eb95454), HPT and its SRFT (TsinghuaC3I/Unify-Post-Training at ae332f5), Prefix-RFT
(ZeroYuHuang/prefix_rft at 5f5d2a1). All of them: 128 questions x 8 completions, learnt from in two optimizer steps of
64 questions; advantages without division by the deviation; no KL; temperature 1; AdamW 0.9/0.999, weight decay 0.01.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scalpel.config.training import TrainSettings
from scalpel.config.types import Positive, Rate, Tokens
from scalpel.cost.amount import HALF, Amount, product
from scalpel.errors import UserError
from scalpel.methods.method import Method, RowSizes, Work
from scalpel.methods.rollout_recipe import RolloutRecipe, check_writers, rollout_steps_fed, scored_work

Weight = Annotated[float, Field(ge=0, le=1000)]
Clip = Annotated[float, Field(ge=0, le=1000)]


class MixedRecipe(RolloutRecipe):
    """A step's loss is, over all its micro-batches and ranks,

        policy terms / normaliser + likelihood terms / their tokens + beta x KL - entropy_coefficient x mean entropy.

    The normaliser of the policy terms, and what max_grad_norm clips, belong together:

    * `ranks`: max_completion_tokens x `normaliser_ranks`. The forks sum the tokens of each of 8 GPUs, divide by the
      longest length alone, and average over the GPUs.
    * `completions`: max_completion_tokens x completions of the step, TRL's dr_grpo. With 64 x 8 completions that is
      64 times as much as `ranks`: gradients are 64 times smaller, and a clip norm of 1 is another thing.
    * `tokens`: the step's tokens with policy terms, TRL's dapo.

    All log-probabilities are those at `temperature`, as in the forks. They take the mean likelihood and entropy in each
    micro-batch and add these up, so that their weight follows from the hardware; here they are means over the step.
    """

    learning_rate: Rate = 1e-6
    schedule: Literal["constant_with_warmup", "linear", "cosine", "constant"] = "constant"
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    questions_per_step: Annotated[int, Field(gt=0, le=10**6)] = 64
    generations: Annotated[int, Field(ge=2, le=10**5)] = 8
    updates: Annotated[int, Field(gt=0, le=1000)] = 2
    steps: Positive = 1000  # 500 batches of rollouts
    max_completion_tokens: Tokens = 8192
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    mask_truncated_completions: bool = False
    format_weight: float = 0.0

    normaliser: Literal["ranks", "completions", "tokens"] = "ranks"
    normaliser_ranks: Positive = 8
    epsilon: Clip | None = None  # of the ratio's clip; None: none
    epsilon_high: Clip | None = None  # None: epsilon
    beta: Weight = 0.0
    entropy_coefficient: Weight = 1e-3
    scale_rewards: Literal["group", "none"] = "none"

    @model_validator(mode="after")
    def _clipped(self) -> MixedRecipe:
        if self.epsilon_high is not None and self.epsilon is None:
            raise ValueError("epsilon_high is the upper bound of a clip that is off without `epsilon`; give both")
        return self

    @property
    def traces_per_question(self) -> int:
        """Rows of a step, beside the `generations` of each question, that are its trace."""
        return 0

    @property
    def most_sequences(self) -> int:
        """Rows of an optimizer step at most."""
        return self.questions_per_step * (self.generations + self.traces_per_question)


def accumulation(recipe: MixedRecipe, sequences_per_device: int, ranks: int) -> int:
    """Micro-batches of each rank in one optimizer step; ranks and micro-batches may hold unequal numbers of rows."""
    return ceil(ceil(recipe.most_sequences / ranks) / sequences_per_device)


class MixedMethod(Method):
    """A declaration's common part. Ranks may hold unequal numbers of rows."""

    version = 2  # 2: rewards by scalpel/grading's wider rule
    samples = True
    accumulation = staticmethod(accumulation)
    steps_fed = staticmethod(rollout_steps_fed)

    @staticmethod
    def check(recipe: Any, settings: TrainSettings) -> None:
        check_writers(recipe, settings)


def check_second_optimizer(settings: TrainSettings, method: str) -> None:
    """UserError under ZeRO-2, whose first optimizer owns gradients and parameters."""
    if settings.engine == "zero2":
        raise UserError(
            f"train_settings: `engine: zero2` allows no second optimizer, which {method} needs; use fsdp or single."
        )


def trace_tokens(recipe: RolloutRecipe, rows: RowSizes) -> Amount:
    """Mean tokens of a question with its trace."""
    return Amount.of(rows.tokens) if rows.tokens else Amount.of(rows.prompt_tokens) + completion_tokens(recipe)


def completion_tokens(recipe: RolloutRecipe) -> Amount:
    return product(recipe.max_completion_tokens, HALF)


def mixed_work(recipe: MixedRecipe, rows: RowSizes, own: int, traces: float, written: float = 1.0) -> Work:
    """A question takes `own` completions and `traces` traces through the model; `written` is the share of a
    completion's tokens that the policy writes itself."""
    questions = product(recipe.steps, recipe.questions_per_step)
    one = Amount.of(rows.prompt_tokens) + completion_tokens(recipe)
    trained = product(questions, own, one)
    if traces:
        trained = trained + product(questions, traces, trace_tokens(recipe, rows))
    sampled = product(questions, own, completion_tokens(recipe), written)
    sampled = sampled / recipe.iterations if recipe.iterations > 1 else sampled
    return Work(trained, sampled, scored_work(recipe, trained))
