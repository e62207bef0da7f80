"""UFT. All completions of a question begin with the same k of 5 chunks of its trace, k ~ Binomial(5, p).

Loss: GRPO over the tokens after the hint + beta x KL + 0.001 x the mean -log p of the hints' tokens.
"""

from __future__ import annotations

import numpy as np

from scalpel.methods.decay import cosine
from scalpel.methods.mixed import MixedTrainer, entries
from scalpel.methods.rollouts import Ask


class UFTTrainer(MixedTrainer):
    columns = MixedTrainer.columns | {
        "uft/probability": "hint_probability",
        "uft/share": "hint_share",
        "uft/tokens": "hint_tokens",
    }

    @property
    def probability(self) -> float:
        """That a chunk is in the hint."""
        recipe = self.recipe
        if self.batch_number > recipe.hint_steps:
            return 0.0
        return cosine(self.batch_number, recipe.hint_steps, recipe.hint_first, recipe.hint_last)

    def write(self, batch):
        p, chunks, asks = self.probability, self.recipe.chunks, []
        for position, row in batch:
            trace = self.trace(row)[:-1]  # EOS is never given
            chosen = np.random.default_rng((self.run.seed, position, 1)).binomial(chunks, p)
            hint = trace[: min(round(chosen / chunks * len(trace)), self.recipe.max_completion_tokens - 1)]
            asks.append(Ask(position, row, self.recipe.generations, hint))
        return self.own(asks)

    def by_policy(self, rollout):
        return range(rollout.prefix, len(rollout.ids))

    def by_likelihood(self, rollout):
        return range(rollout.prefix)

    def baseline(self, group):
        return [True] * len(group)

    def likelihood_weight(self):
        return self.recipe.sft_weight

    def explored(self, inputs):
        return inputs["policy"], inputs["policy_tokens"]

    def metrics(self, groups):
        hints = [(group[0].prefix, len(self.trace(group[0].row))) for group in groups]
        found = {"uft/probability": self.probability, "uft/tokens": sum(n for n, _ in hints) / len(hints)}
        return super().metrics(groups) | found | {"uft/share": sum(n / whole for n, whole in hints) / len(hints)}


train, trl_config, parts = entries(UFTTrainer)
