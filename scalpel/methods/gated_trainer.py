"""HPT and SuperRL: each question is learnt either from its own completions or from its trace.

Loss: GRPO over the completions of the questions above the gate, and sft_weight x the mean -log p of the tokens of the
other questions' traces. Their own completions are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from scalpel.methods.mixed import DemonstrationTrainer
from scalpel.methods.rollouts import EXPERT, Rollout


class GatedTrainer(DemonstrationTrainer):
    """Subclasses say which questions are learnt from their trace: gated(group)."""

    columns = DemonstrationTrainer.columns | {"gate_rate": "gate_rate"}
    gated: Callable[[list[Rollout]], bool]

    def credit(self, groups):
        super().credit(groups)
        for group in groups:
            if self.gated(group):
                for rollout in group:
                    rollout.advantage = None
                self.demonstrate(group, group[0].position, group[0].row)

    def likelihood_weight(self):
        return self.recipe.sft_weight

    def metrics(self, groups):
        gated = sum(group[-1].origin == EXPERT for group in groups)
        return super().metrics(groups) | {"gate_rate": gated / len(groups)}


class SkippingTrainer(GatedTrainer):
    """Leaves out optimizer steps with a gradient norm above the recipe's `skip_above`."""

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if self.recipe.skip_above is not None and norm is not None and not float(norm) <= self.recipe.skip_above:
            for parameter in model.parameters():
                parameter.grad = None  # no step, no moments, no weight decay
        return norm
