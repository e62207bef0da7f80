"""Group relative policy optimisation with verifiable rewards, on TRL's GRPOTrainer (paper section 3.1).

Advantage: reward minus the mean of the question's group, not divided by its standard deviation
(``scale_rewards: none``); loss dr_grpo: the token sum over batch x max_completion_tokens. With one update per
batch of rollouts the probability ratio is 1, so epsilon never binds.
"""

from __future__ import annotations

import torch

from scalpel.errors import UserError
from scalpel.methods.grpo import GRPORecipe
from scalpel.methods.loop import TrainingRun
from scalpel.methods.ranks import Ranks
from scalpel.methods.rollout_recipe import micro_batch_size
from scalpel.methods.rollouts import Parts, Rollout, RolloutTrainer, train_rollouts

ALMOST_NOTHING = 1e-4  # added to standard deviations, as TRL does


class GRPOCreditTrainer(RolloutTrainer):
    """GRPO's credit; its loss is TRL's own."""

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
                rollout.advantage /= deviation + ALMOST_NOTHING


def parts(recipe: GRPORecipe) -> Parts:
    """What a run is made of."""
    config = {
        "loss_type": recipe.loss_type,
        "beta": recipe.beta,
        "epsilon": recipe.epsilon,
        "epsilon_high": recipe.epsilon_high,
    }
    return Parts(GRPOCreditTrainer, config, recipe.loss_type)


def train(run: TrainingRun) -> None:
    """Carry out one run (scalpel/methods/run.py)."""
    recipe, ranks = run.recipe, Ranks.here().count
    size = micro_batch_size(recipe, run.settings.sequences_per_device, ranks)
    sequences = recipe.questions_per_step * recipe.generations
    if recipe.loss_type == "bnpo" and sequences > size:
        raise UserError(
            "loss_type bnpo takes its token mean within each micro-batch, so the result would depend on the device; "
            f"set train_settings.sequences_per_device to {sequences} with one rank, or use dapo, "
            "the mean over the step."
        )
    made = parts(recipe)
    train_rollouts(run, made.trainer, made.config)
