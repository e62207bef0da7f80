"""RED: GRPO and SFT, weighed by how either moves the entropy and by accuracy (arXiv 2508.16677): declaration.

The authors' repository (millioniron/OpenRLHF-Millioniron- at 04d5401) is empty, and their equations were not to be had
whole. Known from the abstract and the reviews: the weight of SFT follows the ratio of the changes of entropy on
traces and on own completions, larger where own exploration changes little; and the less accurate a question's
completions, the more its trace is imitated. Bounds, base and the form of the second are those of a third party's
account (Phonsiriwillbejommarn/Recall-Extend-Dynamics-CoDA): weight = clamp(dH_sft / dH_rl, least, most) x
accuracy_base ^ (1 - 2 accuracy), times 0.1. All of them are options, and none is the authors' word.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.types import Fraction
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import Clip, MixedMethod, MixedRecipe, Weight, mixed_work


class REDRecipe(MixedRecipe):
    method: Literal["red"] = "red"
    normaliser: Literal["ranks", "completions", "tokens"] = "tokens"
    epsilon: Clip | None = 0.2
    scale_rewards: Literal["group", "none"] = "group"
    sft_weight: Weight = 0.1
    least_weight: Weight = 1.0
    most_weight: Weight = 5.0
    entropy_memory: Fraction = 0.99  # of the moving averages of the changes of entropy
    accuracy_base: Annotated[float, Field(ge=1, le=1000)] = 5.0  # 1: accuracy has no say

    @property
    def traces_per_question(self) -> int:
        return 1


class RED(MixedMethod):
    name = "red"
    Recipe = REDRecipe
    trainer = "scalpel.methods.red_trainer"

    @staticmethod
    def work(recipe: REDRecipe, rows: RowSizes) -> Work:
        return mixed_work(recipe, rows, recipe.generations, 1)
