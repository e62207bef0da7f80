"""The engine that transformers' own model runs on: any device, any causal model, also one that is being trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scalpel.chat import load_tokenizer
from scalpel.errors import UserError
from scalpel.inference import scoring
from scalpel.inference.requests import Completion, Request, end_tokens
from scalpel.inference.sampling import Group, sample
from scalpel.weights import copy_tensors, default_device, load_model, replace_weights

Part = tuple[int, int, int]  # number of a request, first and last of its samples


class TransformersEngine:
    """Completions and log-likelihoods by a model in this process.

    It may be wrapped around a model that is being trained: the model is put into evaluation mode and back, no
    gradient is kept, and no state of torch's random numbers is read or changed.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int):
        """batch_size: completions, or scored sequences, that are computed together where memory suffices."""
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    @classmethod
    def open(cls, directory: Path, batch_size: int, dtype: str = "auto") -> TransformersEngine:
        """The engine of a saved model, on the GPU if there is one; dtype as in scalpel.weights.load_model."""
        return cls(load_model(directory, dtype, default_device()), load_tokenizer(directory), batch_size)

    @property
    def max_length(self) -> int:
        return self.model.config.max_position_embeddings

    def load(self, directory: Path) -> None:
        replace_weights(self.model, directory)

    def load_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        copy_tensors(self.model, tensors)

    def complete(
        self,
        requests: Sequence[Request],
        temperature: float,
        top_p: float,
        logprobs: bool = False,
        top_k: int | None = None,
    ) -> list[list[Completion]]:
        """The longest first: fewer and fuller batches. A prompt beyond the model's positions is answered whole."""
        ends = end_tokens(self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id)

        def work(parts: list[Part]) -> dict[Part, list[Completion]]:
            groups = [Group(requests[n].prompt, _draws(requests[n])[first:last]) for n, first, last in parts]
            found = sample(self.model, groups, ends, self.tokenizer.pad_token_id, temperature, top_p, logprobs, top_k)
            return dict(zip(parts, found, strict=True))

        order = sorted(range(len(requests)), key=lambda n: (-requests[n].max_tokens, -len(requests[n].prompt), n))
        completions: list[list[Completion]] = [[] for _ in requests]
        with self._evaluating():
            for batch in _batches(order, requests, lambda: self.batch_size):
                for (number, _, _), found in sorted(self._in_memory(batch, work, _half_the_samples).items()):
                    completions[number] += found
        return completions

    def loglikelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        sequences = scoring.sequences_of(pairs)
        results: dict[int, tuple[float, bool]] = {}

        def work(batch: list[tuple[int, ...]]) -> dict[int, tuple[float, bool]]:
            return scoring.score(self.model, batch, sequences, self.tokenizer.pad_token_id)

        with self._evaluating():
            for batch in scoring.batches(sequences, lambda: self.batch_size):
                results |= self._in_memory(batch, work, lambda sequence: [sequence])
        return [results[number] for number in range(len(pairs))]

    def _in_memory(self, items: list, work: Callable[[list], dict], cut: Callable[[Any], list]) -> dict:
        """`work` on all items; where the device's memory does not suffice, on halves, and of one item on what `cut`
        makes of it. Later batches are smaller from the beginning.

        Raises UserError when what cannot be cut does not fit either.
        """
        try:
            return work(items)
        except torch.OutOfMemoryError:
            if len(items) == 1:
                items = cut(items[0])
            if len(items) == 1:
                raise UserError(
                    "one prompt alone exceeds the device's memory; lower max_new_tokens or shots."
                ) from None
        torch.cuda.empty_cache()
        self.batch_size = max(1, self.batch_size // 2)
        middle = len(items) // 2
        return self._in_memory(items[:middle], work, cut) | self._in_memory(items[middle:], work, cut)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """In evaluation mode and without gradients, and then as it was."""
        training = [module for module in self.model.modules() if module.training]
        # FSDP keeps buffers that it makes here for the training that follows, where inference tensors may not be.
        sharded = hasattr(next(self.model.parameters()), "full_tensor")
        try:
            self.model.eval()
            with torch.no_grad() if sharded else torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True


def _draws(request: Request) -> np.ndarray:
    """Uniform numbers in [0, 1), one per sample and token."""
    return np.random.default_rng(request.seed).random((request.samples, request.max_tokens))


def _batches(order: list[int], requests: Sequence[Request], size: Callable[[], int]) -> Iterator[list[Part]]:
    """Requests in this order, in batches of at most size() completions; one with more than that is cut up."""
    batch: list[Part] = []
    rows = 0
    for number in order:
        most = size()
        for first in range(0, requests[number].samples, most):
            last = min(first + most, requests[number].samples)
            if batch and rows + last - first > size():
                yield batch
                batch, rows = [], 0
            batch.append((number, first, last))
            rows += last - first
    if batch:
        yield batch


def _half_the_samples(part: Part) -> list[Part]:
    number, first, last = part
    middle = (first + last) // 2
    return [part] if last - first == 1 else [(number, first, middle), (number, middle, last)]
