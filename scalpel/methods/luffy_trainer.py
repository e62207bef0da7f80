"""LUFFY. A group is generations - 1 own completions and the trace, all graded; advantages are over all of them.

An own token's term is -r A without a clip, r = p / p_old; a trace's token's is -f(p) A, f(p) = p / (p + gamma), the
behaviour policy's probability taken as 1 (equations 5 to 7; mix_core_alg.py, compute_token_on_off_policy_loss).
"""

from __future__ import annotations

from typing import Any, cast

import torch

from scalpel.methods.luffy import LUFFYRecipe
from scalpel.methods.mixed import MixedTrainer, entries
from scalpel.methods.rollouts import EXPERT, OWN, Ask, Rollout
from scalpel.methods.token_losses import off_policy


class LUFFYTrainer(MixedTrainer):
    recipe: LUFFYRecipe

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        count = self.recipe.generations - self.recipe.experts
        groups = self.own([Ask(position, row, count) for position, row in batch])
        for (position, row), group in zip(batch, groups, strict=True):
            group += [self.expert(position, row, len(group)) for _ in range(self.recipe.experts)]
        return groups

    def baseline(self, group: list[Rollout]) -> list[bool]:
        return [self.recipe.mean_over == "group" or rollout.origin == OWN for rollout in group]

    def policy_terms(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        own = super().policy_terms(logps, entropies, inputs)
        return torch.where(inputs["expert"], self.off_policy(logps, inputs), own)

    def off_policy(self, logps: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        return off_policy(logps, self.advantages(inputs), self.recipe.shaping, self.recipe.gamma)

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        experts = [rollout for group in groups for rollout in group if rollout.origin == EXPERT]
        right = [rollout.rewards["accuracy"] for rollout in experts if rollout.rewards["accuracy"] is not None]
        found = super().metrics(groups)
        if experts:
            found["expert_advantage"] = sum(cast("float", rollout.advantage) for rollout in experts) / len(experts)
        return found | ({"expert_accuracy": sum(right) / len(right)} if right else {})

    columns = MixedTrainer.columns | {"expert_advantage": "expert_advantage", "expert_accuracy": "expert_accuracy"}


train, trl_config, parts = entries(LUFFYTrainer)
