"""Prefix-RFT. A group is generations - 1 plain completions and one that continues a prefix of the trace.

The prefix has l x |trace| tokens, l even between a lower bound, which falls along a cosine, and a fixed upper one. Of
its tokens only the fifth with the highest entropy have policy terms, without a clip, the old probability being the
policy's own. The code takes that fifth over all prefixes of a micro-batch; here it is each prefix's own, so that no
micro-batch decides what is learnt.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from scalpel.methods.decay import cosine
from scalpel.methods.mixed import MixedTrainer, entries
from scalpel.methods.prefix_rft import PrefixRFTRecipe
from scalpel.methods.rollouts import MIXED, OWN, Ask, Rollout
from scalpel.methods.token_losses import highest, surrogate

HYBRID = 1  # tag of its random numbers


class PrefixRFTTrainer(MixedTrainer):
    columns = MixedTrainer.columns | {
        "prefix/low": "prefix_low",
        "prefix/share": "prefix_share",
        "prefix/tokens": "prefix_tokens",
        "prefix/accuracy": "hybrid_accuracy",
        "prefix/learnt": "prefix_learnt",
    }
    recipe: PrefixRFTRecipe

    @property
    def low(self) -> float:
        """Lower bound of the prefix's share."""
        recipe = self.recipe
        return cosine(self.batch_number, recipe.low_steps, recipe.low_first, recipe.low_last)

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        plain = self.own([Ask(position, row, self.recipe.generations - 1) for position, row in batch])
        asks = [Ask(position, row, 1, self.prefix(position, row), None, (HYBRID,)) for position, row in batch]
        for group, (hybrid,) in zip(plain, self.own(asks), strict=True):
            group.append(replace(hybrid, sample=len(group)))
        return plain

    def prefix(self, position: int, row: int) -> list[int]:
        """The beginning of a question's trace, never the whole."""
        recipe, trace = self.recipe, self.trace(row)
        low, high = sorted((self.low, recipe.high))
        share = np.random.default_rng((self.run.seed, position, HYBRID)).uniform(low, high)
        tokens = max(int(share * len(trace)), recipe.least_prefix)
        return trace[: min(tokens, len(trace) - 1, recipe.max_completion_tokens - 1)]

    def credit(self, groups: list[list[Rollout]]) -> None:
        """Sets `prefix_advantages` of hybrids by their position, where they are not the completion's."""
        super().credit(groups)
        if self.recipe.estimator == "group":
            return
        for group, values in zip(groups, self.total_rewards(groups), strict=True):
            values = torch.nan_to_num(values, nan=0.0)
            *plain, hybrid = group
            mean = float(values[:-1].mean())
            for rollout, value in zip(plain, values.tolist(), strict=False):
                rollout.advantage = value - mean
            reward = float(values[-1])
            split = self.recipe.estimator == "split"
            hybrid.advantage, hybrid.prefix_advantage = (reward, reward - mean) if split else (0.0, -mean)

    def tensors(self, rollouts: list[Rollout]) -> dict[str, Any]:
        of = [r.advantage if r.prefix_advantage is None else r.prefix_advantage for r in rollouts]
        found = torch.tensor([value or 0.0 for value in of], device=self.accelerator.device)
        return super().tensors(rollouts) | {"prefix_advantages": found}

    def advantages(self, inputs: dict[str, Any]) -> torch.Tensor:
        return torch.where(inputs["expert"], inputs["prefix_advantages"][:, None], inputs["advantages"][:, None])

    def policy_terms(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        own, prefix = super().policy_terms(logps, entropies, inputs), inputs["expert"] & inputs["policy"]
        learnt = highest(entropies.detach(), prefix, self.recipe.entropy_share)
        self.record("prefix/learnt", learnt, prefix)
        if not self.recipe.prefix_clip:
            old = inputs.get("old_per_token_logps", logps.detach())
            own = torch.where(prefix, surrogate(logps, old, self.advantages(inputs), None, None), own)
        return own * (learnt | ~prefix)

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        hybrids = [rollout for group in groups for rollout in group if rollout.origin == MIXED]
        right = [r.rewards["accuracy"] for r in hybrids if r.rewards["accuracy"] is not None]
        found = super().metrics([[r for r in group if r.origin == OWN] for group in groups]) | {"prefix/low": self.low}
        if hybrids:
            found["prefix/tokens"] = sum(r.prefix for r in hybrids) / len(hybrids)
            found["prefix/share"] = sum(r.prefix / len(self.trace(r.row)) for r in hybrids) / len(hybrids)
        return found | ({"prefix/accuracy": sum(right) / len(right)} if right else {})


train, trl_config, parts = entries(PrefixRFTTrainer)
