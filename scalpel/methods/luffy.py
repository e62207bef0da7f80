"""LUFFY: expert traces among the rollouts of a group, their probabilities shaped (arXiv 2504.14945): declaration.

Defaults: exp_scripts/train.sh and luffy/verl/verl/mix_src/mix_core_alg.py of ElliottYan/LUFFY at 01f4ae0.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import MixedMethod, MixedRecipe, mixed_work


class LUFFYRecipe(MixedRecipe):
    method: Literal["luffy"] = "luffy"
    experts: Annotated[int, Field(ge=0, le=1)] = 1  # of the `generations` of a group: its trace (n_prefix)
    shaping: Literal["shaped", "ratio", "log"] = "shaped"  # token_losses.off_policy (off_policy_reshape)
    gamma: Annotated[float, Field(gt=0, le=100)] = 0.1
    mean_over: Literal["group", "own"] = "group"  # advantages; `own` is the code's adv_estimator grpo_split

    @model_validator(mode="after")
    def _some_own(self) -> Self:
        if self.mean_over == "own" and self.generations - self.experts < 2:
            raise ValueError("mean_over: own needs two own completions; raise `generations`")
        return self


class LUFFY(MixedMethod):
    name = "luffy"
    Recipe = LUFFYRecipe
    trainer = "scalpel.methods.luffy_trainer"

    @staticmethod
    def work(recipe: LUFFYRecipe, rows: RowSizes) -> Work:
        return mixed_work(recipe, rows, recipe.generations - recipe.experts, recipe.experts)
