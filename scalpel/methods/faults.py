"""Wrong objectives of SFT that training frameworks computed in silence, emulated on any engine.

Source: "SFT-then-RL Outperforms Mixed-Policy Methods", section 2. The bugs depend on how a step was shared: so many
ranks, so many micro-batches of each. A recipe names that layout, and what it does to each sequence is a weight of its
tokens; the engine, ranks and micro-batches that really carry the run out decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scalpel.methods.sft import SFTRecipe


class Weight(NamedTuple):
    """Of a sequence's tokens. logged: in the loss that the framework reports; learnt: in the gradient it steps by."""

    logged: float
    learnt: float


def weights(recipe: SFTRecipe, steps: Sequence[Sequence[int]]) -> list[Weight] | None:
    """The weight of every sequence, step after step; None when the objective is the right one.

    steps: numbers of trained tokens of each step's sequences. They go to the emulated micro-batches in their order, as
    evenly as they can; micro-batch i is the (i // ranks)-th one of rank i % ranks. One without a sequence (a step of
    fewer sequences than micro-batches) counts in no mean.
    """
    if recipe.right:
        return None
    return [weight for step in steps for weight in _of_step(recipe, np.asarray(step))]


def _of_step(recipe: SFTRecipe, tokens: np.ndarray) -> list[Weight]:
    ranks = recipe.emulated_ranks
    parts = np.array_split(np.arange(len(tokens)), recipe.emulated_accumulation * ranks)
    group = np.concatenate([np.full(len(part), number) for number, part in enumerate(parts)]).astype(int)
    rank, micro = group % ranks, group // ranks
    denominators = {
        "token": lambda: np.full(len(tokens), tokens.sum()),
        "group": lambda: _tokens_of(group, tokens) * len(set(group)),
        "rank": lambda: _tokens_of(rank, tokens) * len(set(rank)),
    }
    logged = 1 / denominators[recipe.loss_mean]()
    last = np.array([micro[rank == mine].max() for mine in rank])
    reached = {"all": micro >= 0, "first": micro == 0, "first_and_last": (micro == 0) | (micro == last)}
    learnt = np.where(reached[recipe.micro_batches], logged, 0.0)
    return [Weight(*pair) for pair in zip(logged.tolist(), learnt.tolist(), strict=True)]


def _tokens_of(number: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Tokens of all sequences that have the same number, for each sequence."""
    return np.bincount(number, tokens)[number]
