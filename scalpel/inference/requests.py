"""What is asked of an engine and what comes back. Nothing here imports torch.

An engine is a model and a way to run it. Evaluation, rollouts in training and generated answers all go through this
interface; `scalpel.inference.open_engine` makes the engine that a recipe names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


class Request(NamedTuple):
    """`samples` completions of one prompt, of at most `max_tokens` tokens each.

    prompt: token ids, at least one. seed: whole numbers that alone decide, for one engine, what is sampled, whatever
    else is asked beside it.
    """

    prompt: list[int]
    seed: tuple[int, ...]
    samples: int
    max_tokens: int


class Completion(NamedTuple):
    """One answer to a request.

    ids: without the token that ended it. end: that token, one of the model's or tokenizer's end-of-text tokens; None
    when there was no more room. logprobs: in nats, of every id and then of `end`, under the distribution they were
    sampled from: at the temperature and within the nucleus; at temperature 0 the model's own.
    """

    ids: list[int]
    end: int | None
    logprobs: list[float] | None = None


class Engine(Protocol):
    model: Any  # transformers' own: vllm_engine.py has its architecture alone

    @property
    def max_length(self) -> int:
        """The model's positions."""

    def load(self, directory: Path) -> None:
        """Take the weights of another checkpoint of the same architecture; UserError when it is damaged or another."""

    def load_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take weights by their names in a saved model, all of them; UserError naming one that lacks or is unknown."""

    def complete(
        self,
        requests: Sequence[Request],
        temperature: float,
        top_p: float,
        logprobs: bool = False,
        top_k: int | None = None,
    ) -> list[list[Completion]]:
        """Completions of every request, in order. Temperature 0: greedy. top_k: of that many most likely tokens alone,
        of which top_p is then the share; None: of all."""

    def loglikelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For every (context ids, continuation ids), none of them empty: log P(continuation | context) in nats, and
        whether each of its tokens is the most likely one."""


def end_tokens(model_ends: int | list[int] | tuple[int, ...] | None, tokenizer_end: int) -> set[int]:
    """Tokens that end a completion: those of generation_config.json and the tokenizer's own."""
    ends = model_ends if isinstance(model_ends, (list, tuple)) else [model_ends]
    return {tokenizer_end, *(end for end in ends if end is not None)}
