"""What is measured on checkpoints beside benchmarks: KL divergence, and causal tracing of facts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scalpel.config.types import Name, Positive, Recipe, Strict, Whole, unhashed


class KLRecipe(Recipe):
    """KL(reference || checkpoint) on one question set's problems and solutions, rendered with the chat template."""

    questions: Name | None = unhashed(None)  # a set with problems and solutions; None: the one of the measure's name
    prompts: Positive | None = None  # first questions only; None: all
    max_tokens: Positive = 4096


class KLSettings(Strict):
    chunk: Positive = 512  # positions whose full-vocabulary log-probabilities are held at once
    batch_tokens: Positive = 4096
    threads: Positive = 1


class TraceRecipe(Recipe):
    """Causal tracing by restoring states in a run on noised subjects (paper appendix D; Meng et al., 2022)."""

    questions: Name = unhashed("facts")  # a set of format facts
    facts: Positive | None = None  # first facts only; None: all
    noise: Annotated[float, Field(gt=0)] = 3.0  # times the standard deviation of the subject tokens' embeddings
    samples: Annotated[int, Field(gt=0, le=1000)] = 10  # noised copies of each fact
    window: Positive = 10  # layers whose MLP or attention outputs are restored together
    seed: Whole = 42


class TraceSettings(Strict):
    batch_size: Positive = 256  # sequences of one forward pass
    threads: Positive = 1
