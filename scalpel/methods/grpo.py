"""Group relative policy optimisation with verifiable rewards (paper section 3.1): declaration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.training import TrainSettings
from scalpel.errors import UserError
from scalpel.methods.method import Method
from scalpel.methods.rollout_recipe import (
    RolloutRecipe,
    check_rollouts,
    micro_batch_size,
    rollout_accumulation,
    rollout_steps_fed,
    rollout_work,
)


class GRPORecipe(RolloutRecipe):
    method: Literal["grpo"] = "grpo"
    loss_type: Literal["dr_grpo", "dapo", "grpo", "bnpo"] = "dr_grpo"
    beta: Annotated[float, Field(ge=0)] = 0.0
    epsilon: Annotated[float, Field(ge=0)] = 0.2
    epsilon_high: Annotated[float, Field(ge=0)] | None = None  # None: epsilon
    scale_rewards: Literal["group", "batch", "none"] = "none"


class GRPO(Method):
    name = "grpo"
    Recipe = GRPORecipe
    version = 4  # 2: completions are written by scalpel/inference; 3: rewards by scalpel/grading; 4: its rule
    samples = True
    trainer = "scalpel.methods.grpo_trainer"
    work = staticmethod(rollout_work)
    accumulation = staticmethod(rollout_accumulation)
    steps_fed = staticmethod(rollout_steps_fed)

    @staticmethod
    def check(recipe: GRPORecipe, settings: TrainSettings) -> None:
        check_rollouts(recipe, settings)
        sequences, ranks = recipe.questions_per_step * recipe.generations, settings.ranks * settings.nodes
        if recipe.loss_type == "bnpo" and sequences > micro_batch_size(recipe, settings.sequences_per_device, ranks):
            raise UserError(
                "loss_type bnpo takes its token mean within each micro-batch, so the result would depend on the "
                f"device; set train_settings.sequences_per_device to {sequences} with one rank, or use dapo, the mean "
                "over the step."
            )
