"""UFT: completions begin with a hint from the trace, learnt by likelihood, too (arXiv 2505.16984): declaration.

Defaults: run.py, scripts/train.sh and verl/utils/dataset/rl_dataset.py of liumy2010/UFT at ad3c8ec: 256 questions x 4,
optimizer steps of 64; the hint is cut into chunks at the rows' own sentence marks there, here into equal numbers of
tokens. There a hint has room of its own in the prompt; here it counts in max_completion_tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.types import Fraction, Positive
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import Clip, MixedMethod, MixedRecipe, Weight, mixed_work


class UFTRecipe(MixedRecipe):
    method: Literal["uft"] = "uft"
    generations: Annotated[int, Field(ge=2, le=10**5)] = 4
    updates: Annotated[int, Field(gt=0, le=1000)] = 4
    steps: Positive = 2000
    normaliser: Literal["ranks", "completions", "tokens"] = "tokens"
    epsilon: Clip | None = 0.2
    beta: Weight = 0.001
    scale_rewards: Literal["group", "none"] = "group"
    chunks: Annotated[int, Field(gt=0, le=1000)] = 5
    hint_first: Fraction = 0.95  # a chunk's chance to be in the hint: k ~ Binomial(chunks, p), p along a cosine
    hint_last: Fraction = 0.05
    hint_steps: Positive = 300  # batches of rollouts; no hints afterwards
    sft_weight: Weight = 0.001  # of the mean -log p of the hints' tokens


class UFT(MixedMethod):
    name = "uft"
    Recipe = UFTRecipe
    trainer = "scalpel.methods.uft_trainer"

    @staticmethod
    def work(recipe: UFTRecipe, rows: RowSizes) -> Work:
        """As if no completion had a hint: an upper bound of what is written."""
        return mixed_work(recipe, rows, recipe.generations, 0)
