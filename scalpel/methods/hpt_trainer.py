"""HPT (scalpel/methods/gated_trainer.py): the gate counts right completions."""

from __future__ import annotations

from scalpel.methods.gated_trainer import SkippingTrainer
from scalpel.methods.mixed import entries
from scalpel.methods.rollouts import Rollout


class HPTTrainer(SkippingTrainer):
    def gated(self, group: list[Rollout]) -> bool:
        return sum(rollout.rewards["accuracy"] == 1.0 for rollout in group) <= self.recipe.gate


train, trl_config, parts = entries(HPTTrainer)
