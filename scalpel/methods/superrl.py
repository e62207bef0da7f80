"""SuperRL: GRPO where some completion earns a reward, the trace where none does (arXiv 2506.01096v2): declaration.

Its text names no code and no coefficients; optimizer and batch are those of the other methods here.
"""

from __future__ import annotations

from typing import Literal

from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import Clip, MixedMethod, MixedRecipe, Weight, mixed_work


class SuperRLRecipe(MixedRecipe):
    method: Literal["superrl"] = "superrl"
    epsilon: Clip | None = 0.2  # GRPO's
    sft_weight: Weight = 1.0


class SuperRL(MixedMethod):
    name = "superrl"
    Recipe = SuperRLRecipe
    trainer = "scalpel.methods.superrl_trainer"

    @staticmethod
    def work(recipe: SuperRLRecipe, rows: RowSizes) -> Work:
        """As if every question had a reward: an upper bound."""
        return mixed_work(recipe, rows, recipe.generations, 0)
