"""HPT and SuperRL: each question is learnt either from its own completions or from its trace.

Loss: GRPO over the completions of the questions above the gate, and sft_weight x the mean -log p of the tokens of the
other questions' traces. Their own completions are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scalpel.methods.hpt import HPTRecipe
from scalpel.methods.mixed import DemonstrationTrainer
from scalpel.methods.rollouts import EXPERT, Rollout
from scalpel.methods.superrl import SuperRLRecipe


class GatedTrainer(DemonstrationTrainer):
    """Subclasses say which questions are learnt from their trace: gated(group)."""

    columns = DemonstrationTrainer.columns | {"gate_rate": "gate_rate"}
    recipe: HPTRecipe | SuperRLRecipe
    gated: Callable[[list[Rollout]], bool]

    def credit(self, groups: list[list[Rollout]]) -> None:
        super().credit(groups)
        for group in groups:
            if self.gated(group):
                for rollout in group:
                    rollout.advantage = None
                self.demonstrate(group, group[0].position, group[0].row)

    def likelihood_weight(self) -> float:
        return self.recipe.sft_weight

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        gated = sum(group[-1].origin == EXPERT for group in groups)
        return super().metrics(groups) | {"gate_rate": gated / len(groups)}


class SkippingTrainer(GatedTrainer):
    """Leaves out optimizer steps with a gradient norm above the recipe's `skip_above`."""

    recipe: HPTRecipe

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if self.recipe.skip_above is not None and norm is not None and not float(norm) <= self.recipe.skip_above:
            for parameter in model.parameters():
                parameter.grad = None  # no step, no moments, no weight decay
        return norm
