"""UFT. All completions of a question begin with the same k of 5 chunks of its trace, k ~ Binomial(5, p).

Loss: GRPO over the tokens after the hint + beta x KL + 0.001 x the mean -log p of the hints' tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scalpel.methods.decay import cosine
from scalpel.methods.mixed import MixedTrainer, entries
from scalpel.methods.rollouts import Ask, Rollout
from scalpel.methods.uft import UFTRecipe


class UFTTrainer(MixedTrainer):
    columns = MixedTrainer.columns | {
        "uft/probability": "hint_probability",
        "uft/share": "hint_share",
        "uft/tokens": "hint_tokens",
    }
    recipe: UFTRecipe

    @property
    def probability(self) -> float:
        """That a chunk is in the hint."""
        recipe = self.recipe
        if self.batch_number > recipe.hint_steps:
            return 0.0
        return cosine(self.batch_number, recipe.hint_steps, recipe.hint_first, recipe.hint_last)

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        p, chunks, asks = self.probability, self.recipe.chunks, []
        for position, row in batch:
            trace = self.trace(row)[:-1]  # EOS is never given
            chosen = np.random.default_rng((self.run.seed, position, 1)).binomial(chunks, p)
            hint = trace[: min(round(chosen / chunks * len(trace)), self.recipe.max_completion_tokens - 1)]
            asks.append(Ask(position, row, self.recipe.generations, hint))
        return self.own(asks)

    def by_policy(self, rollout: Rollout) -> range:
        return range(rollout.prefix, len(rollout.ids))

    def by_likelihood(self, rollout: Rollout) -> range:
        return range(rollout.prefix)

    def baseline(self, group: list[Rollout]) -> list[bool]:
        return [True] * len(group)

    def likelihood_weight(self) -> float:
        return self.recipe.sft_weight

    def explored(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs["policy"], inputs["policy_tokens"]

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        hints = [(group[0].prefix, len(self.trace(group[0].row))) for group in groups]
        found = {"uft/probability": self.probability, "uft/tokens": sum(n for n, _ in hints) / len(hints)}
        return super().metrics(groups) | found | {"uft/share": sum(n / whole for n, whole in hints) / len(hints)}


train, trl_config, parts = entries(UFTTrainer)
