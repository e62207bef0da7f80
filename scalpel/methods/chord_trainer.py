"""CHORD. Loss: (1 - mu) x GRPO over the own completions + mu x the mean over the traces' tokens of -w log p, with
w = p (1 - p) taken without a gradient."""

from __future__ import annotations

from typing import Any

import torch

from scalpel.methods.chord import CHORDRecipe
from scalpel.methods.decay import warmed_cosine
from scalpel.methods.mixed import DemonstrationTrainer, entries
from scalpel.methods.rollouts import Rollout


class CHORDTrainer(DemonstrationTrainer):
    columns = DemonstrationTrainer.columns | {"chord/mu": "mu", "chord/phi": "token_weight"}
    recipe: CHORDRecipe

    @property
    def mu(self) -> float:
        recipe = self.recipe
        return warmed_cosine(self.batch_number, recipe.mu_warmup, recipe.mu_steps, recipe.mu_first, recipe.mu_last)

    def credit(self, groups: list[list[Rollout]]) -> None:
        super().credit(groups)
        for group in groups:
            self.demonstrate(group, group[0].position, group[0].row)

    def policy_weight(self) -> float:
        return 1 - self.mu

    def likelihood_weight(self) -> float:
        return self.mu

    def likelihood_weights(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        p = logps.detach().exp()
        weight = {"p(1-p)": p * (1 - p), "p": p, "none": p.new_ones(p.shape)}[self.recipe.token_weight]
        self.record("chord/phi", weight, inputs["likelihood"])
        return weight

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        return super().metrics(groups) | {"chord/mu": self.mu}


train, trl_config, parts = entries(CHORDTrainer)
