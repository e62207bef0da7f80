"""Prefix-RFT: one completion of each group continues the beginning of the trace (arXiv 2507.01679): declaration.

Defaults: recipe/prefix_rft of ZeroYuHuang/prefix_rft at 5f5d2a1 (dp_actor.py, core_algos.py, rl_dataset.py,
scheduler/global_step.py); the configuration of the published runs is not in it, so which estimator they had is open.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from scalpel.config.types import Fraction, Positive, Whole
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import Clip, MixedMethod, MixedRecipe, mixed_work


class PrefixRFTRecipe(MixedRecipe):
    method: Literal["prefix_rft"] = "prefix_rft"
    normaliser: Literal["ranks", "completions", "tokens"] = "tokens"
    epsilon: Clip | None = 0.2
    low_first: Fraction = 0.95  # the prefix is a share of the trace, drawn evenly between `low` and `high`
    low_last: Fraction = 0.05  # `low` falls along a cosine
    high: Fraction = 0.95
    low_steps: Positive = 500  # batches of rollouts
    least_prefix: Whole = 0  # tokens (min_prefix_len)
    entropy_share: Fraction = 0.2  # of a prefix's tokens, those with the highest entropy; the others take no gradient
    prefix_clip: bool = False  # enable_clip
    # group: dr_grpo, one advantage for prefix and continuation, over the whole group
    # split: dr_grpo_prefix, R of the continuation, R - the plain completions' mean of the prefix
    # prefix: dr_grpo_prefix_v2, 0 of the continuation and, as that code computes it, -the plain mean of the prefix
    estimator: Literal["group", "split", "prefix"] = "group"

    @model_validator(mode="after")
    def _several_plain(self) -> Self:
        if self.generations < 3:
            raise ValueError("generations must be 3 at least: one continues the trace, the others need a mean")
        return self


class PrefixRFT(MixedMethod):
    name = "prefix_rft"
    Recipe = PrefixRFTRecipe
    trainer = "scalpel.methods.prefix_rft_trainer"

    @staticmethod
    def work(recipe: PrefixRFTRecipe, rows: RowSizes) -> Work:
        """A hybrid is as long as any completion; what it is given is not written, on average half of it."""
        written = (recipe.generations - 0.5) / recipe.generations
        return mixed_work(recipe, rows, recipe.generations, 0, written)
