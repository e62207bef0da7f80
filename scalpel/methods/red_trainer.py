"""RED. Loss: GRPO over the own completions + the mean over the traces' tokens of -w log p, with w the product of a
weight of the step, from the changes of entropy, and one of the question, from its completions' accuracy."""

from __future__ import annotations

from typing import Any

import torch

from scalpel.methods.mixed import DemonstrationTrainer, entries
from scalpel.methods.red import REDRecipe
from scalpel.methods.rollouts import Rollout


class REDTrainer(DemonstrationTrainer):
    columns = DemonstrationTrainer.columns | {
        "red/weight": "entropy_weight",
        "red/accuracy": "accuracy_weight",
        "red/traces": "trace_entropy",
        "red/own": "own_entropy",
    }
    recipe: REDRecipe

    def __init__(self, *args: Any, **kwargs: Any):
        self.entropies: dict[str, float] = {}  # of the step before, on traces and on own completions
        self.changes: dict[str, float] = {}  # moving averages of their changes, from step to step
        super().__init__(*args, **kwargs)

    @property
    def entropy_weight(self) -> float:
        recipe = self.recipe
        if len(self.changes) < 2:
            return recipe.least_weight
        traces, own = self.changes["red/traces"], self.changes["red/own"]
        return min(max(traces / own if own else recipe.most_weight, recipe.least_weight), recipe.most_weight)

    def credit(self, groups: list[list[Rollout]]) -> None:
        super().credit(groups)
        for group in groups:
            right = [r.rewards["accuracy"] for r in group if r.rewards["accuracy"] is not None]
            accuracy = sum(right) / len(right) if right else 0.0
            trace = self.demonstrate(group, group[0].position, group[0].row)
            trace.weight = self.recipe.accuracy_base ** (1 - 2 * accuracy)

    def tensors(self, rollouts: list[Rollout]) -> dict[str, Any]:
        weights = torch.tensor([rollout.weight for rollout in rollouts], device=self.accelerator.device)
        return super().tensors(rollouts) | {"weights": weights}

    def likelihood_weight(self) -> float:
        return self.recipe.sft_weight * self.entropy_weight

    def likelihood_weights(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        self.record("red/traces", entropies, inputs["likelihood"])
        self.record("red/own", entropies, inputs["policy"])
        weights = inputs["weights"][:, None].expand_as(logps)
        self.record("red/accuracy", weights, inputs["likelihood"])
        return weights

    def after_step(self, step: int) -> None:
        self.measure({"red/weight": self.entropy_weight})
        super().after_step(step)
        memory = self.recipe.entropy_memory
        for name in ("red/traces", "red/own"):
            now = self.step_means.get(name)
            if now is None:
                continue
            if name in self.entropies:
                change = abs(now - self.entropies[name])
                self.changes[name] = memory * self.changes.get(name, change) + (1 - memory) * change
            self.entropies[name] = now

    def kept(self) -> dict[str, Any]:
        return super().kept() | {"entropies": self.entropies, "changes": self.changes}

    def restore(self, kept: dict[str, Any]) -> None:
        super().restore(kept)
        self.entropies, self.changes = kept["entropies"], kept["changes"]


train, trl_config, parts = entries(REDTrainer)
