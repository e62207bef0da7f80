"""ReLIFT (scalpel/methods/interleaved_trainer.py): a question is hard when none of its completions is right.

Policy terms are -r A without a clip of the ratio.
"""

from __future__ import annotations

from scalpel.methods.interleaved_trainer import InterleavedTrainer
from scalpel.methods.mixed import entries
from scalpel.methods.rollouts import Rollout


class ReLIFTTrainer(InterleavedTrainer):
    def is_hard(self, group: list[Rollout]) -> bool:
        return all(rollout.rewards["accuracy"] == 0.0 for rollout in group)


train, trl_config, parts = entries(ReLIFTTrainer)
