"""Group relative policy optimisation with verifiable rewards, on TRL's GRPOTrainer (paper section 3.1).

Advantage: reward minus the mean of the question's group, not divided by its standard deviation
(``scale_rewards: none``); loss dr_grpo: the token sum over batch x max_completion_tokens. With one update per
batch of rollouts the probability ratio is 1, so epsilon never binds.
"""

from __future__ import annotations

from typing import Any

import torch

from scalpel.methods.grpo import GRPO, GRPORecipe
from scalpel.methods.loop import TrainingRun
from scalpel.methods.rollouts import Parts, Rollout, RolloutTrainer, train_rollouts, trl_rollout_config

ALMOST_NOTHING = 1e-4  # added to standard deviations, as TRL does


class GRPOCreditTrainer(RolloutTrainer):
    """GRPO's credit; its loss is TRL's own."""

    recipe: GRPORecipe

    def credit(self, groups: list[list[Rollout]]) -> None:
        super().credit(groups)
        scale = self.recipe.scale_rewards
        if scale == "none":
            return
        totals = self.total_rewards(groups)
        for group, values in zip(groups, totals, strict=True):
            of = values if scale == "group" else torch.cat(totals)
            deviation = float(of[~of.isnan()].std()) if (~of.isnan()).sum() > 1 else 0.0
            for rollout in group:
                assert rollout.advantage is not None
                rollout.advantage /= deviation + ALMOST_NOTHING


def config(recipe: GRPORecipe) -> dict[str, Any]:
    """GRPO's own of TRL's GRPOConfig."""
    return {
        "loss_type": recipe.loss_type,
        "beta": recipe.beta,
        "epsilon": recipe.epsilon,
        "epsilon_high": recipe.epsilon_high,
    }


def trl_config(run: TrainingRun, steps: int, gpu: bool) -> tuple[type, dict[str, Any]]:
    """TRL's class and its arguments."""
    return trl_rollout_config(run, steps, config(run.recipe), gpu)


def parts(recipe: GRPORecipe) -> Parts:
    """What a run is made of."""
    return Parts(GRPOCreditTrainer, config(recipe), recipe.loss_type)


def train(run: TrainingRun) -> None:
    """Carry out one run (scalpel/methods/run.py)."""
    GRPO.check(run.recipe, run.settings)
    made = parts(run.recipe)
    train_rollouts(run, made.trainer, made.config)
