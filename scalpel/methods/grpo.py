"""Group relative policy optimisation with verifiable rewards (paper section 3.1): declaration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.methods.method import Method
from scalpel.methods.rollout_recipe import RolloutRecipe, rollout_accumulation, rollout_work


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
    version = 3  # 2: completions are written by scalpel/inference; 3: rewards by scalpel/grading
    samples = True
    trainer = "scalpel.methods.grpo_trainer"
    work = staticmethod(rollout_work)
    accumulation = staticmethod(rollout_accumulation)
