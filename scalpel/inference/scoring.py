"""Log-likelihoods of continuations: what sequences share goes through the model once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from scalpel.inference.sampling import common_prefix

WORTH_SHARING = 64  # tokens: a batch is split rather than lose so much of the prefix its prompts share
Sequences = dict[tuple[int, ...], list[tuple[int, list[int]]]]  # ids read -> (number of the pair, continuation)


class SharedPrefix(DynamicLayer):
    """Keys and values of one prefix (batch of 1), seen by every row of a batch and kept as they are."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        if not self.is_initialized:
            return super().update(keys, values)
        rows = keys.shape[0]
        shared = (t.expand(rows, -1, -1, -1) for t in (self.keys, self.values))
        return tuple(torch.cat([old, new], dim=-2) for old, new in zip(shared, (keys, values), strict=True))


def sequences_of(pairs: Sequence[tuple[list[int], list[int]]]) -> Sequences:
    """What must be read to score the pairs. Continuations that differ in their last token alone share a sequence."""
    found: Sequences = defaultdict(list)
    for number, (context, continuation) in enumerate(pairs):
        found[(*context, *continuation[:-1])].append((number, continuation))
    return found


def batches(sequences: Sequences, size: Callable[[], int]) -> Iterator[list[tuple[int, ...]]]:
    """The sequences, sorted, in runs of at most size() whose members share a long prefix."""
    run: list[tuple[int, ...]] = []
    shared = 0
    for sequence in sorted(sequences):
        common = common_prefix([run[0], sequence]) if run else len(sequence)
        if run and (len(run) >= size() or (len(run) > 1 and shared - common >= WORTH_SHARING)):
            yield run
            run, common = [], len(sequence)
        run.append(sequence)
        shared = common
    if run:
        yield run


def score(model: Any, batch: list[tuple[int, ...]], sequences: Sequences, pad: int) -> dict[int, tuple[float, bool]]:
    """Number of the pair -> (log-likelihood in nats, whether greedy), of all pairs of a batch of sequences."""
    deepest = {s: max(len(continuation) for _, continuation in sequences[s]) for s in batch}
    # Positions whose logits are wanted must not lie in the shared prefix.
    prefix = min(common_prefix(batch), min(len(s) - deepest[s] for s in batch))
    backbone, head, device = model.base_model, model.get_output_embeddings(), model.device
    cache = Cache(layers=[SharedPrefix() for _ in range(model.config.num_hidden_layers)])
    if prefix:
        backbone(torch.tensor([batch[0][:prefix]], device=device), past_key_values=cache, use_cache=True)
    width = max(map(len, batch)) - prefix  # padding on the right: causal attention never looks there
    ids = torch.tensor([[*s[prefix:], *[pad] * (width + prefix - len(s))] for s in batch], device=device)
    hidden = backbone(ids, past_key_values=cache, use_cache=True).last_hidden_state
    results = {}
    for row, s in enumerate(batch):
        end = len(s) - prefix
        logits = torch.log_softmax(head(hidden[row, end - deepest[s] : end]).float(), dim=-1)
        for number, continuation in sequences[s]:
            tail = logits[deepest[s] - len(continuation) :]
            target = torch.tensor(continuation, device=device)
            value = tail.gather(1, target[:, None]).sum().item()
            results[number] = value, bool((tail.argmax(-1) == target).all())
    return results
