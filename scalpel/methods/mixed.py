"""The trainer that methods share which learn from their own completions and from expert traces.

Every token of a rollout has a policy term, a likelihood term or none. Methods say which (`by_policy`,
`by_likelihood`), what a term is (`policy_terms`, `likelihood_weights`) and how the two are weighed (`policy_weight`,
`likelihood_weight`); the sums over tokens, micro-batches and ranks are taken here, so that they add up whatever the
micro-batches hold. Normalisers: scalpel/methods/mixed_recipe.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from scalpel.methods import METHODS
from scalpel.methods.loop import TrainingRun
from scalpel.methods.mixed_recipe import MixedRecipe, accumulation
from scalpel.methods.rollouts import COLUMNS, EXPERT, Parts, Rollout, RolloutTrainer, arguments, train_rollouts
from scalpel.methods.token_losses import is_clipped, kl_from, surrogate

ALMOST_NOTHING = 1e-6  # added to standard deviations, as the forks do
KEPT = "method.json"  # of a state: what the method itself resumes from
BLANK = Rollout(-1, -1, 0, [0], [0], ended=False, advantage=None)  # a row that fills a micro-batch and trains nothing
MIXED_COLUMNS = {"expert_share": "expert_share", "expert_probability": "expert_probability"}


class MixedTrainer(RolloutTrainer):
    """Policy terms on all tokens; an expert's token and one's own are told apart by `inputs["expert"]`."""

    columns = COLUMNS | MIXED_COLUMNS
    recipe: MixedRecipe

    def __init__(self, *args: Any, **kwargs: Any):
        self.recorded: dict[str, list[float]] = {}  # sum and count on this rank since the step began, by name
        self.step_means: dict[str, float | None] = {}  # of the step before, over all ranks
        super().__init__(*args, **kwargs)

    # ------------------------------------------------------------ what methods override

    def by_policy(self, rollout: Rollout) -> range:
        """Its tokens that have a policy term."""
        return range(len(rollout.ids))

    def by_likelihood(self, rollout: Rollout) -> range:
        """Its tokens that have a likelihood term."""
        return range(0)

    def policy_terms(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """(sequences, tokens) of a micro-batch; terms of other tokens do not count."""
        low = self.recipe.epsilon
        high = low if self.recipe.epsilon_high is None else self.recipe.epsilon_high
        old, advantages = inputs.get("old_per_token_logps", logps.detach()), self.advantages(inputs)
        self.record("clip_ratio/region_mean", is_clipped(logps, old, advantages, low, high), inputs["policy"])
        return surrogate(logps, old, advantages, low, high)

    def likelihood_weights(
        self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]
    ) -> torch.Tensor | float:
        """What -log p of each token is multiplied by."""
        return 1.0

    def policy_weight(self) -> float:
        """Of all policy terms of the step at hand."""
        return 1.0

    def likelihood_weight(self) -> float:
        """Of all likelihood terms of the step at hand."""
        return 1.0

    def advantages(self, inputs: dict[str, Any]) -> torch.Tensor:
        """(sequences, tokens), or (sequences, 1)."""
        return inputs["advantages"][:, None]

    def baseline(self, group: list[Rollout]) -> list[bool]:
        """Which of a question's rollouts the mean reward is taken over."""
        return [len(self.by_policy(rollout)) > 0 for rollout in group]

    # ------------------------------------------------------------ credit

    def credit(self, groups: list[list[Rollout]]) -> None:
        """Each rollout's reward less its baseline, over the deviation if the recipe says so."""
        for group, values in zip(groups, self.total_rewards(groups), strict=True):
            of = values[self.baseline(group)]
            scale = 1.0
            if self.recipe.scale_rewards == "group" and (~of.isnan()).sum() > 1:
                scale = float(of[~of.isnan()].std()) + ALMOST_NOTHING
            centred = torch.nan_to_num((values - torch.nanmean(of)) / scale, nan=0.0)
            for rollout, advantage in zip(group, centred.tolist(), strict=True):
                rollout.advantage = advantage if len(self.by_policy(rollout)) else None

    # ------------------------------------------------------------ micro-batches

    def micro_batches_per_step(self) -> int:
        return accumulation(self.recipe, self.run.settings.sequences_per_device, self.ranks.count)

    def portions(self, rollouts: list[Rollout], rank: int) -> list[list[Rollout]]:
        """As equal as may be over ranks, then micro-batches; a blank row where there would be none."""
        return self.blanked(cut(rollouts, self.ranks.count)[rank], self.accumulation)

    def blanked(self, rollouts: list[Rollout], count: int) -> list[list[Rollout]]:
        """In `count` micro-batches."""
        return [part or [BLANK] for part in cut(rollouts, count)]

    def learns(self, rollout: Rollout) -> bool:
        return rollout is not BLANK and super().learns(rollout)

    def counts(self, rollouts: list[Rollout]) -> dict[str, torch.Tensor]:
        learnt = [rollout for rollout in rollouts if self.learns(rollout)]
        policy, likelihood = (sum(len(tokens(r)) for r in learnt) for tokens in (self.by_policy, self.by_likelihood))
        found = {"policy_tokens": policy, "likelihood_tokens": likelihood}
        both = {name: torch.tensor(count, device=self.accelerator.device) for name, count in found.items()}
        return super().counts(rollouts) | both

    def tensors(self, rollouts: list[Rollout]) -> dict[str, Any]:
        """With masks over the completions' tokens: `expert` (a trace's), `policy` and `likelihood` (their terms)."""
        found = super().tensors(rollouts)
        mask = found["completion_mask"].bool()
        marks = {name: torch.zeros_like(mask) for name in ("expert", "policy", "likelihood")}
        for number, rollout in enumerate(rollouts):
            marks["expert"][number, : rollout.prefix] = True
            if rollout is not BLANK:
                for name, tokens in (("policy", self.by_policy), ("likelihood", self.by_likelihood)):
                    of = tokens(rollout)
                    marks[name][number, of.start : of.stop] = True
        return found | {name: mark & mask for name, mark in marks.items()}

    # ------------------------------------------------------------ the loss

    def scores(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies of the completions' tokens at the recipe's temperature."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], self.read(inputs)], dim=1)
        length = inputs["completion_ids"].shape[1]
        logps, entropies, _ = self._get_per_token_logps_and_entropies(model, ids, mask, length, compute_entropy=True)
        return logps, entropies

    def read(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Which of the completions' tokens the model reads: those that are in the loss."""
        return inputs["completion_mask"]

    def loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        recipe = self.recipe
        logps, entropies = self.scores(model, inputs)
        policy, likelihood = inputs["policy"], inputs["likelihood"]
        counts = {name: inputs[name].clamp(min=1) for name in ("policy_tokens", "likelihood_tokens")}
        size = {
            "ranks": recipe.max_completion_tokens * recipe.normaliser_ranks,
            "completions": recipe.max_completion_tokens * recipe.questions_per_step * recipe.generations,
            "tokens": counts["policy_tokens"],
        }[recipe.normaliser]
        loss = (self.policy_terms(logps, entropies, inputs) * policy).sum() / size * self.policy_weight()
        weights = self.likelihood_weights(logps, entropies, inputs)
        negative = -(logps * weights * likelihood).sum() / counts["likelihood_tokens"]
        loss = loss + self.likelihood_weight() * negative
        if recipe.beta:
            kl = kl_from(logps, inputs["ref_per_token_logps"])
            self.record("kl", kl, policy)
            loss = loss + recipe.beta * (kl * policy).sum() / counts["policy_tokens"]
        if recipe.entropy_coefficient:
            among, count = self.explored(inputs)
            loss = loss - recipe.entropy_coefficient * (entropies * among).sum() / count.clamp(min=1)
        learnt = policy | likelihood
        self.record("entropy", entropies, learnt)
        self.record("expert_share", inputs["expert"], learnt)
        self.record("expert_probability", logps.exp(), inputs["expert"] & learnt)
        return loss * self.ranks.count  # gradients are averaged over ranks

    def explored(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens whose entropy is in the loss, and how many they are in the whole step."""
        return inputs["policy"] | inputs["likelihood"], inputs["num_items_in_batch"]

    # ------------------------------------------------------------ what is logged

    def record(self, name: str, values: torch.Tensor, among: torch.Tensor) -> None:
        """Log the mean of `values` over the step's tokens `among`, all micro-batches and ranks together."""
        sums = self.recorded.setdefault(name, [0.0, 0.0])
        sums[0] += float((values.detach() * among).sum())
        sums[1] += float(among.sum())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        return self.loss(model, inputs)

    def after_step(self, step: int) -> None:
        found = self.ranks.everyone([self.recorded])
        self.recorded = {}
        sums = {name: [sum(rank[name][i] for rank in found) for i in (0, 1)] for name in found[0]}
        self.step_means = {name: total / count if count else None for name, (total, count) in sums.items()}
        self.measure({name: mean for name, mean in self.step_means.items() if mean is not None})

    # ------------------------------------------------------------ resuming

    def kept(self) -> dict[str, Any]:
        """JSON values that the method resumes from; `restore` reads them."""
        return {"step_means": self.step_means}

    def restore(self, kept: dict[str, Any]) -> None:
        self.step_means = kept["step_means"]

    def save_more(self, directory: Path) -> None:
        super().save_more(directory)
        if self.ranks.first:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / KEPT).write_text(json.dumps(self.kept()))

    def load_more(self, directory: Path) -> None:
        super().load_more(directory)
        self.restore(json.loads((directory / KEPT).read_text()))


class DemonstrationTrainer(MixedTrainer):
    """Traces are learnt by their likelihood, own completions by policy gradient. `demonstrate` puts a trace into a
    question's group."""

    def by_policy(self, rollout: Rollout) -> range:
        return range(0) if rollout.origin == EXPERT else super().by_policy(rollout)

    def by_likelihood(self, rollout: Rollout) -> range:
        return range(len(rollout.ids)) if rollout.origin == EXPERT else range(0)

    def demonstrate(self, group: list[Rollout], position: int, row: int) -> Rollout:
        """Its answer is not graded."""
        trace = self.expert(position, row, len(group))
        trace.rewards, trace.advantage = {"accuracy": None, "format": None}, None
        group.append(trace)
        return trace

    def taken(self, group: list[Rollout]) -> list[Rollout]:
        return [rollout for rollout in group if rollout.origin == EXPERT or rollout.advantage is not None]


def cut(items: list, count: int) -> list[list]:
    """`items` in `count` consecutive parts whose sizes differ by one at most."""
    bounds = [round(number * len(items) / count) for number in range(count + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def config(recipe: MixedRecipe) -> dict[str, Any]:
    """Of TRL's GRPOConfig. TRL compares the sizes with each other and does nothing else with them: a step's rows and
    its loss are cut and taken here."""
    sizes = dict.fromkeys(("per_device_train_batch_size", "num_generations"), recipe.generations)
    return sizes | {"loss_type": "dr_grpo", "beta": recipe.beta}


def entries(trainer: type[MixedTrainer]) -> tuple[Callable, Callable, Callable]:
    """What a trainer module offers (scalpel/methods/run.py, scripts/show.py, scalpel/audit): `train`, `trl_config` and
    `parts`."""

    def train(run: TrainingRun) -> None:
        METHODS[run.recipe.method].check(run.recipe, run.settings)
        train_rollouts(run, trainer, config(run.recipe))

    def trl_config(run: TrainingRun, steps: int, gpu: bool) -> tuple[type, dict[str, Any]]:
        settings = run.settings
        micro_batches = accumulation(run.recipe, settings.sequences_per_device, settings.ranks * settings.nodes)
        return GRPOConfig, arguments(run, steps, micro_batches, config(run.recipe), gpu)

    def parts(recipe: MixedRecipe) -> Parts:
        return Parts(trainer, config(recipe))

    return train, trl_config, parts
