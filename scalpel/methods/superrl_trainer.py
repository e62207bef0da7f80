"""SuperRL (scalpel/methods/gated_trainer.py): a question without any reward takes its trace."""

from __future__ import annotations

from scalpel.methods.gated_trainer import GatedTrainer
from scalpel.methods.mixed import entries
from scalpel.methods.rollouts import Rollout


class SuperRLTrainer(GatedTrainer):
    def gated(self, group: list[Rollout]) -> bool:
        (rewards,) = self.total_rewards([group])
        return not bool((rewards > 0).any())  # what cannot be graded earns none


train, trl_config, parts = entries(SuperRLTrainer)
