"""SRFT: demonstrations and own completions weighed by entropy, in one stage (arXiv 2506.19767): declaration.

The authors published no code; equations as HPT's authors implement them (exp_scripts/train_srft.sh and
hpt/verl/verl/mix_src/mix_actor.py of TsinghuaC3I/Unify-Post-Training at ae332f5), which agree with accounts of the
paper's text. Sources differ on the sign in w_RL: it is an option.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import MixedMethod, MixedRecipe, Weight, mixed_work

Exponent = Annotated[float, Field(ge=-10, le=10)]


class SRFTRecipe(MixedRecipe):
    method: Literal["srft"] = "srft"
    sft_scale: Weight = 0.5  # w_SFT = sft_scale x exp(sft_exponent x H)
    sft_exponent: Exponent = -1.0
    rl_scale: Weight = 0.1  # w_RL = rl_scale x exp(rl_exponent x H), of right completions
    rl_exponent: Exponent = 1.0  # the sign differs between sources: -1.0 is the other
    wrong_weight: Weight = 1.0  # of wrong completions
    demonstration_weight: Weight = 1.0  # of the trace's policy terms
    entropy_of: Literal["sequence", "step"] = "sequence"  # what H is the mean over; step: of the step before
    own_term: Literal["log", "probability", "ratio"] = "log"  # srft_type: paper, exp, classic_rl
    shaping: Literal["shaped", "ratio", "log"] = "shaped"
    gamma: Annotated[float, Field(gt=0, le=100)] = 0.1

    @field_validator("epsilon", "epsilon_high")
    @classmethod
    def _unclipped(cls, value: float | None) -> None:
        if value is not None:
            raise ValueError("in SRFT, which clips no ratio, it must be null")


class SRFT(MixedMethod):
    name = "srft"
    Recipe = SRFTRecipe
    trainer = "scalpel.methods.srft_trainer"

    @staticmethod
    def work(recipe: SRFTRecipe, rows: RowSizes) -> Work:
        return mixed_work(recipe, rows, recipe.generations - 1, 1)
