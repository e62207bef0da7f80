"""SRFT. A group is generations - 1 own completions and the trace. The loss has three parts:

* the trace's likelihood: w_SFT x -log p, w_SFT = 0.5 exp(-H);
* the trace's policy terms -f(p) A, as LUFFY's;
* own completions without advantages: w_RL x -log p of a right one's tokens, +log p of a wrong one's, w_RL = 0.1 exp(H).

H is the mean entropy over a sequence's tokens and takes no gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from scalpel.methods.luffy_trainer import LUFFYTrainer
from scalpel.methods.mixed import MixedTrainer, entries
from scalpel.methods.rollouts import EXPERT, Ask, Rollout
from scalpel.methods.srft import SRFTRecipe


class SRFTTrainer(LUFFYTrainer):
    columns = LUFFYTrainer.columns | {"srft/sft": "sft_weight", "srft/rl": "rl_weight", "srft/H": "sequence_entropy"}
    recipe: SRFTRecipe  # type: ignore[assignment]  # which has what `off_policy` reads of LUFFY's

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        groups = self.own([Ask(position, row, self.recipe.generations - 1) for position, row in batch])
        for (position, row), group in zip(batch, groups, strict=True):
            group.append(self.expert(position, row, len(group)))
        return groups

    def baseline(self, group: list[Rollout]) -> list[bool]:
        return MixedTrainer.baseline(self, group)

    def by_likelihood(self, rollout: Rollout) -> range:
        return range(len(rollout.ids)) if rollout.origin == EXPERT else range(0)

    def tensors(self, rollouts: list[Rollout]) -> dict[str, Any]:
        right = [rollout.rewards.get("accuracy") == 1.0 for rollout in rollouts]
        return super().tensors(rollouts) | {"right": torch.tensor(right, device=self.accelerator.device)}

    def mean_entropy(self, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """H of each sequence, (sequences, 1)."""
        learnt = inputs["policy"] | inputs["likelihood"]
        before = self.step_means.get("entropy")
        if self.recipe.entropy_of == "step" and before is not None:
            return torch.full_like(entropies[:, :1], before)
        return ((entropies * learnt).sum(1) / learnt.sum(1).clamp(min=1)).detach()[:, None]

    def policy_terms(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        recipe, h = self.recipe, self.mean_entropy(entropies, inputs)
        old = inputs.get("old_per_token_logps", logps.detach())
        of = {"log": logps, "probability": logps.exp(), "ratio": (logps - old).exp()}[recipe.own_term]
        weight = recipe.rl_scale * (recipe.rl_exponent * h).exp()
        own = of * torch.where(inputs["right"][:, None], -weight, torch.full_like(weight, recipe.wrong_weight))
        written = inputs["policy"] & ~inputs["expert"]
        self.record("srft/rl", weight.expand_as(logps), written & inputs["right"][:, None])
        self.record("srft/H", h.expand_as(logps), inputs["policy"])
        return torch.where(inputs["expert"], recipe.demonstration_weight * self.off_policy(logps, inputs), own)

    def likelihood_weights(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        weight = self.recipe.sft_scale * (self.recipe.sft_exponent * self.mean_entropy(entropies, inputs)).exp()
        self.record("srft/sft", weight.expand_as(logps), inputs["likelihood"])
        return weight


train, trl_config, parts = entries(SRFTTrainer)
