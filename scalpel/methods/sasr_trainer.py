"""SASR. A batch of questions is learnt from its traces, the mean of -log p, or from own completions by GRPO; in a batch
of SFT nothing is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from scalpel.methods.mixed import DemonstrationTrainer, entries
from scalpel.methods.rollouts import Rollout
from scalpel.methods.sasr import SASRRecipe

COIN = 2  # tag of its random numbers


class SASRTrainer(DemonstrationTrainer):
    columns = DemonstrationTrainer.columns | {"sasr/chance": "sft_chance", "sasr/sft": "sft_batch"}
    recipe: SASRRecipe

    def __init__(self, *args: Any, **kwargs: Any):
        self.sft = False  # whether the batch at hand is learnt from its traces
        self.warmup_norm: float | None = None  # of the gradient, in the last SFT step of the warm-up
        self.last_norm: float | None = None  # and in the last SFT step
        super().__init__(*args, **kwargs)

    @property
    def chance(self) -> float:
        """That the batch at hand is learnt from its traces."""
        recipe = self.recipe
        if self.batch_number < recipe.warmup_batches:
            return 1.0
        if recipe.chance is not None:
            return recipe.chance
        if not self.last_norm:
            return 0.0
        assert self.warmup_norm is not None
        return self.last_norm / (self.last_norm + recipe.gamma * self.warmup_norm)

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        self.sft_chance = self.chance
        self.sft = np.random.default_rng((self.run.seed, self.batch_number, COIN)).random() < self.sft_chance
        if not self.sft:
            return super().write(batch)
        groups: list[list[Rollout]] = [[] for _ in batch]
        for group, (position, row) in zip(groups, batch, strict=True):
            self.demonstrate(group, position, row)
        return groups

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        return super().metrics(groups) | {"sasr/chance": self.sft_chance, "sasr/sft": float(self.sft)}

    def after_log(self, logs: dict[str, Any]) -> None:
        super().after_log(logs)
        if self.sft and logs.get("grad_norm") is not None:
            self.last_norm = float(logs["grad_norm"])
            if (self.state.global_step - 1) // self.per_batch < self.recipe.warmup_batches:
                self.warmup_norm = self.last_norm

    def kept(self) -> dict[str, Any]:
        return super().kept() | {"sft": bool(self.sft), "norms": [self.warmup_norm, self.last_norm]}

    def restore(self, kept: dict[str, Any]) -> None:
        super().restore(kept)
        self.sft, (self.warmup_norm, self.last_norm) = kept["sft"], kept["norms"]


train, trl_config, parts = entries(SASRTrainer)
