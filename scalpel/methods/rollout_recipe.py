"""What methods that learn from their own completions have in common, and their arithmetic."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.training import MethodRecipe, TrainSettings
from scalpel.config.types import Fraction, Positive, Tokens, later
from scalpel.cost.amount import HALF, Amount, product
from scalpel.errors import UserError
from scalpel.methods.method import RowSizes, Work


class RolloutRecipe(MethodRecipe):
    """Methods that write `generations` completions to each question and learn from their rewards.

    An optimizer step (`steps` counts these) takes the completions of `questions_per_step` questions. Rollouts are
    written for `updates` steps at a time, and each batch of them is gone through `iterations` times; where the product
    is above 1, later steps learn from completions of an earlier policy. Rewards: scalpel/methods/rewards.py.
    """

    questions_per_step: Annotated[int, Field(gt=0, le=10**6)] = 4
    generations: Annotated[int, Field(ge=2, le=10**5)] = 28
    steps: Positive = 571
    max_completion_tokens: Tokens = 1500
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.6
    top_p: Fraction = 1.0
    top_k: Annotated[int, Field(gt=0, le=10**6)] | None = later(None, as_before=None)  # None: every token
    # Given as a message of its own in front of every question; None: the template's. The authors' GRPO gave the
    # template's text so, and their template then writes a line break that it leaves out without one.
    system_message: str | None = later(None, as_before=None)
    max_prompt_tokens: Tokens | None = later(None, as_before=None)  # of a longer prompt the last ones; None: all
    inference: Literal["transformers", "vllm"] = "transformers"  # who writes the completions
    updates: Annotated[int, Field(gt=0, le=1000)] = 1
    iterations: Annotated[int, Field(gt=0, le=1000)] = 1
    mask_truncated_completions: bool = True
    disable_dropout: bool = True
    accuracy_weight: float = 1.0
    answer_rule: Literal["strict", "authors"] = later("strict", as_before="strict")  # scalpel/grading/judge.py
    # Of the tags alone, each that stands there once (scalpel/grading/text.py): what the paper's models exploited.
    tag_count_weight: float = later(0.0, as_before=0.0)
    format_weight: float = 0.2  # the paper's text: 0.2 in section 3.1, 0.1 in appendix B.2; the code 0.2


def rollout_work(recipe: RolloutRecipe, rows: RowSizes) -> Work:
    """Every completion is trained on `iterations` times, its prompt with it, and written once."""
    completions = product(recipe.steps, recipe.questions_per_step, recipe.generations)
    length = product(recipe.max_completion_tokens, HALF)
    written = product(completions, length)
    written = written / recipe.iterations if recipe.iterations > 1 else written
    trained = product(completions, Amount.of(rows.prompt_tokens) + length)
    return Work(trained, written, scored_work(recipe, trained))


def scored_work(recipe: RolloutRecipe, trained: Amount) -> Amount | None:
    """Forward passes alone: log-probabilities of the old policy where a batch is used again, of the start where KL
    is taken."""
    passes = (recipe.updates * recipe.iterations > 1) + bool(getattr(recipe, "beta", 0.0))
    return product(passes, trained) / recipe.iterations if passes else None


def micro_batch_size(recipe: RolloutRecipe, sequences_per_device: int, ranks: int = 1) -> int:
    """The largest number of completions per micro-batch, up to the setting, that divides a rank's share of a step."""
    total, left = divmod(recipe.questions_per_step * recipe.generations, ranks)
    if left:
        raise UserError(
            f"{recipe.questions_per_step} questions x {recipe.generations} completions a step do not divide by "
            f"{ranks} ranks; change train_settings.ranks, generations or questions_per_step."
        )
    most = min(total, sequences_per_device)
    divisors = [d for n in range(1, math.isqrt(total) + 1) if total % n == 0 for d in (n, total // n)]
    return max(d for d in divisors if d <= most)


def rollout_accumulation(recipe: RolloutRecipe, sequences_per_device: int, ranks: int) -> int:
    """Micro-batches of each rank in one optimizer step."""
    sequences = recipe.questions_per_step * recipe.generations
    return sequences // (micro_batch_size(recipe, sequences_per_device, ranks) * ranks)


def check_writers(recipe: RolloutRecipe, settings: TrainSettings) -> None:
    """UserError when nobody could write the completions."""
    if settings.engine == "fsdp" and not settings.server:
        raise UserError(
            "train_settings: `engine: fsdp` keeps no whole model to write completions with; give a `server`, "
            "or use zero2."
        )
    if recipe.inference == "vllm" and not settings.server:
        raise UserError("train_settings: `inference: vllm` writes completions in a server; give `server: {gpus: 1}`.")


def check_rollouts(recipe: RolloutRecipe, settings: TrainSettings) -> None:
    """UserError when nobody could write the completions, or the ranks cannot share them equally."""
    check_writers(recipe, settings)
    micro_batch_size(recipe, settings.sequences_per_device, settings.ranks * settings.nodes)


def rollout_steps_fed(recipe: RolloutRecipe, rows: int, epochs: int) -> int:
    """Optimizer steps that an order of `epochs` times `rows` questions feeds."""
    batches = rows * epochs // (recipe.questions_per_step * recipe.updates)
    return batches * recipe.updates * recipe.iterations
