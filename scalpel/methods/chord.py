"""CHORD: one loss of GRPO and SFT, its shares on a schedule (arXiv 2508.11408): declaration.

Defaults: the variant CHORD-mu of trinity/algorithm/policy_loss_fn/chord_policy_loss.py and examples/mix_chord in
modelscope/Trinity-RFT at 0414330, with phi = p (1 - p) on. CHORD-phi has mu 0.1 throughout (mu_first and mu_last 0.1).
There the demonstrations are a stream of their own, 64 beside 32 x 8 completions; here they are the traces of the
questions asked.
"""

from __future__ import annotations

from typing import Literal

from scalpel.config.types import Fraction, Positive, Whole
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import Clip, MixedMethod, MixedRecipe, Weight, mixed_work


class CHORDRecipe(MixedRecipe):
    method: Literal["chord"] = "chord"
    normaliser: Literal["ranks", "completions", "tokens"] = "tokens"
    epsilon: Clip | None = 0.2
    entropy_coefficient: Weight = 0.0
    mu_first: Fraction = 0.9  # mu_peak: share of SFT in the loss
    mu_last: Fraction = 0.05  # mu_valley
    mu_warmup: Whole = 0  # batches of rollouts over which mu rises from 0
    mu_steps: Positive = 200  # then over which it falls along a cosine
    token_weight: Literal["p(1-p)", "p", "none"] = "p(1-p)"  # of -log p, without a gradient; p: the code's sft_is

    @property
    def traces_per_question(self) -> int:
        return 1


class CHORD(MixedMethod):
    name = "chord"
    Recipe = CHORDRecipe
    trainer = "scalpel.methods.chord_trainer"

    @staticmethod
    def work(recipe: CHORDRecipe, rows: RowSizes) -> Work:
        return mixed_work(recipe, rows, recipe.generations, 1)
