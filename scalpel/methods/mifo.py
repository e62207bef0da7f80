"""MIFO: GRPO, and SFT updates on hard questions that spare what GRPO changed (arXiv 2510.04454): declaration.

No code is published. Its text says: a question whose completions are seldom right goes to a buffer with its verified
solution; SFT learns from the tokens of high entropy alone; an importance of every entry of the parameters, built from
how much the policy updates moved it, with a memory of earlier phases, says which are frozen meanwhile. The thresholds
were not to be had: hard_at_most, entropy_share, frozen_share, history and the size of the buffer are options with
defaults of ours, ReLIFT's where it has the same thing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.types import Fraction
from scalpel.methods.mixed_recipe import Weight
from scalpel.methods.relift import InterleavedMethod, InterleavedRecipe


class MIFORecipe(InterleavedRecipe):
    method: Literal["mifo"] = "mifo"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    hard_at_most: Fraction = 0.0  # share of right completions
    entropy_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of a trace's tokens
    frozen_share: Fraction = 0.5  # of the entries of each parameter, those with the highest importance
    history: Fraction = (
        0.5  # importance = history x importance + |change over the policy updates since|; 0: MIFO-dagger
    )
    sft_entropy_coefficient: Weight = 0.0


class MIFO(InterleavedMethod):
    name = "mifo"
    state_bytes = 32  # parameters before the policy updates, and their importance
    Recipe = MIFORecipe
    trainer = "scalpel.methods.mifo_trainer"
