"""SASR: SFT first, then SFT or GRPO by a chance that follows SFT's gradient norm (arXiv 2505.13026): declaration.

No code is published. Its text gives the chance, p = g / (g + gamma x g_warmup), g the norm of the last SFT step's
gradient and g_warmup that of the warm-up's last; gamma, the length of the warm-up and how norms are taken between SFT
steps were not to be had: gamma and warmup_batches are options with defaults of ours, and the norm is that before
clipping of the whole step.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.types import Fraction, Whole
from scalpel.cost.amount import product
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import Clip, MixedMethod, MixedRecipe, mixed_work


class SASRRecipe(MixedRecipe):
    method: Literal["sasr"] = "sasr"
    normaliser: Literal["ranks", "completions", "tokens"] = "tokens"
    epsilon: Clip | None = 0.2
    scale_rewards: Literal["group", "none"] = "group"
    warmup_batches: Whole = 50  # of SFT alone
    gamma: Annotated[float, Field(ge=0, le=1000)] = 1.0
    chance: Fraction | None = None  # of SFT after the warm-up; None: it follows the gradient norms


class SASR(MixedMethod):
    name = "sasr"
    Recipe = SASRRecipe
    trainer = "scalpel.methods.sasr_trainer"

    @staticmethod
    def work(recipe: SASRRecipe, rows: RowSizes) -> Work:
        """After the warm-up as many batches of SFT as `chance` says, else half of them."""
        whole = mixed_work(recipe, rows, recipe.generations, 0)
        traces = mixed_work(recipe, rows, 0, 1).trained
        assert whole.written is not None
        batches = recipe.steps / (recipe.updates * recipe.iterations)
        warm = min(1.0, recipe.warmup_batches / batches)
        sft = warm + (1 - warm) * (0.5 if recipe.chance is None else recipe.chance)
        scored = product(whole.scored, 1 - sft) if whole.scored else None
        return Work(product(whole.trained, 1 - sft) + product(traces, sft), product(whole.written, 1 - sft), scored)
