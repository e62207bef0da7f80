"""What is measured on checkpoints beside benchmarks: KL divergence, and causal tracing of facts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scalpel.config.types import AtOnce, Few, Name, Positive, Recipe, Strict, Tokens, Whole, unhashed


class KLRecipe(Recipe):
    """KL(reference || checkpoint) on one question set's problems and solutions, rendered with the chat template."""

    questions: Name | None = unhashed(None)  # a set with problems and solutions; None: the one of the measure's name
    prompts: Positive | None = None  # first questions only; None: all
    max_tokens: Tokens = 4096


class KLSettings(Strict):
    chunk: AtOnce = 512  # positions whose full-vocabulary log-probabilities are held at once
    batch_tokens: AtOnce = 4096
    threads: Few = 1


class TraceRecipe(Recipe):
    """Causal tracing by restoring states in a run on noised subjects (paper appendix D; Meng et al., 2022)."""

    questions: Name = unhashed("facts")  # a set of format facts
    facts: Positive | None = None  # first facts only; None: all
    noise: Annotated[float, Field(gt=0)] = 3.0  # times the standard deviation of the subject tokens' embeddings
    samples: Annotated[int, Field(gt=0, le=1000)] = 10  # noised copies of each fact
    window: Few = 10  # layers whose MLP or attention outputs are restored together
    seed: Whole = 42


class TraceSettings(Strict):
    batch_size: AtOnce = 256  # sequences of one forward pass
    threads: Few = 1
