"""Sampling by inversion: every completion has its own random numbers, so neither the batch size nor the other
prompts decide what is sampled.

What all prompts of a batch begin with (the system prompt, few-shot examples) goes through the model once, the samples
of a prompt share its pass, and completions that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from scalpel.inference.requests import Completion

ROOM = 64  # tokens by which a cache grows, so that not every new token copies it
LEAVE = 0.25  # of the batch: when more rows than that have ended, the others are moved together


class Growing(DynamicLayer):
    """Keys and values written in place into room that is there already; `keys` and `values` are views of it."""

    keys: torch.Tensor
    values: torch.Tensor
    room: tuple[torch.Tensor, ...] | None = None  # (rows, heads, room, head size) each

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        start = self.get_seq_length()
        end = start + keys.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            old, self.room = (self.keys, self.values), tuple(_roomy(new, end + ROOM) for new in (keys, values))
            if start:
                for room, kept in zip(self.room, old, strict=True):
                    room.narrow(-2, 0, start).copy_(kept)
        for room, new in zip(self.room, (keys, values), strict=True):
            room.narrow(-2, start, end - start).copy_(new)
        self.keys, self.values = (room.narrow(-2, 0, end) for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be named several times."""
        length = self.get_seq_length()
        assert self.room is not None
        self.room = tuple(room.index_select(0, indices) for room in self.room)
        self.keys, self.values = (room.narrow(-2, 0, length) for room in self.room)


def _roomy(like: torch.Tensor, tokens: int) -> torch.Tensor:
    return like.new_empty((*like.shape[:2], tokens, like.shape[-1]))


class Group(NamedTuple):
    """One prompt and the random numbers of its completions, float64 (samples, most new tokens) in [0, 1)."""

    prompt: list[int]
    draws: np.ndarray


def sample(
    model: Any,
    groups: Sequence[Group],
    ends: set[int],
    pad: int,
    temperature: float,
    top_p: float,
    logprobs: bool = False,
    top_k: int | None = None,
) -> list[list[Completion]]:
    """Completions of every group, in order; the inverse of the cumulative probability turns a number into a token.

    ends: tokens that end a completion. pad: any token; what it stands for is masked. Gradients are off in the caller.
    """
    cache = Cache(layers=[Growing() for _ in range(model.config.num_hidden_layers)])
    logits, seen, positions = _read(model, [group.prompt for group in groups], pad, cache)

    device = logits.device
    rows = torch.tensor([number for number, group in enumerate(groups) for _ in group.draws])
    limits = torch.tensor([group.draws.shape[1] for group in groups])[rows]
    most = int(limits.max())
    uniform = torch.zeros(len(rows), most, dtype=torch.float64)
    start = 0
    for group in groups:
        uniform[start : start + len(group.draws), : group.draws.shape[1]] = torch.from_numpy(group.draws)
        start += len(group.draws)
    written = torch.zeros(len(rows), most, dtype=torch.long)
    scored: Any = torch.zeros(len(rows), most, dtype=torch.float64) if logprobs else None
    ending = torch.zeros(logits.shape[-1], dtype=torch.bool)
    ending[[end for end in ends if end < len(ending)]] = True

    # From here on one row a completion: `alive` are their numbers in `written`.
    alive = torch.arange(len(rows))
    there = rows.to(device)
    cache.batch_select_indices(there)
    logits, positions, uniform = logits[there], positions[there], uniform.to(device)
    # One mask for all steps, unless nothing is hidden from any row.
    mask = None if seen.all() else torch.cat([seen[rows], seen.new_ones(len(rows), most)], dim=1).to(device)
    once = _one_mask_for_all_layers(model.config)
    done = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(most):
        tokens, chosen = pick(logits, uniform[:, step], temperature, top_p, logprobs, top_k)
        here = tokens.cpu()
        written[alive, step] = here
        if logprobs:
            assert chosen is not None
            scored[alive, step] = chosen.double().cpu()
        done |= ending[here] | (limits == step + 1)
        ended = int(done.sum())
        if ended == len(done):
            break
        if ended > LEAVE * len(done):
            kept = (~done).nonzero()[:, 0]
            there = kept.to(device)
            cache.batch_select_indices(there)
            alive, limits, done = alive[kept], limits[kept], done[kept]
            tokens, positions, uniform = tokens[there], positions[there], uniform[there]
            if mask is not None:
                mask = None if mask[there].all() else mask[there]
        until = None if mask is None else mask[:, : seen.shape[1] + step + 1]
        if until is not None and once:
            until = until[:, None, None]
        logits = forward(model, tokens[:, None], cache, until, positions + step)

    completions: list[list[Completion]] = []
    scores: Any
    texts, scores = iter(written.tolist()), iter(scored.tolist()) if logprobs else None
    for group in groups:
        mine = []
        for _ in group.draws:
            ids = next(texts)[: group.draws.shape[1]]
            place = next((i for i, token in enumerate(ids) if token in ends), None)
            values = next(scores)[: len(ids) if place is None else place + 1] if logprobs else None
            mine.append(Completion(ids, None, values) if place is None else Completion(ids[:place], ids[place], values))
        completions.append(mine)
    return completions


def _read(
    model: Any, prompts: list[list[int]], pad: int, cache: Cache
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the prompts into the cache, what they all begin with once.

    Returns logits (prompts, vocabulary) after each, which columns of the cache each one sees, and next positions.
    """
    device = model.device
    # Layers that see a window count columns, padding too: it must stand to the left of everything then.
    prefix = common_prefix(prompts) if _all_layers_see_all(model.config) else 0
    if prefix:
        forward(model, torch.tensor([prompts[0][:prefix]], device=device), cache)
        cache.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
    width = max(map(len, prompts)) - prefix  # padding stands between the shared prefix and the rest
    ids = torch.tensor([[pad] * (width + prefix - len(p)) + p[prefix:] for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])
    place = torch.arange(width) - width + lengths[:, None]  # position of each column, below `prefix` for padding
    seen = torch.cat([torch.ones(len(prompts), prefix, dtype=torch.bool), place >= prefix], dim=1)
    logits = forward(model, ids.to(device), cache, seen.to(device), place.clamp(min=0).to(device))
    return logits, seen, lengths[:, None].to(device)


def forward(
    model: Any, ids: torch.Tensor, cache: Cache, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits of the last column, float32 (rows, vocabulary); keys and values go into `cache`."""
    output = model(
        ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    return output.logits[:, -1].float()


def _one_mask_for_all_layers(config: Any) -> bool:
    """Whether transformers may be given the mask that it would make for every layer."""
    return config._attn_implementation == "sdpa" and _all_layers_see_all(config)


def _all_layers_see_all(config: Any) -> bool:
    """Whether every layer sees all that came before."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return set(kinds) == {"full_attention"} and window is None


def pick(
    logits: torch.Tensor,
    draws: torch.Tensor,
    temperature: float,
    top_p: float,
    logprobs: bool = False,
    top_k: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(token ids (rows,), their log-probabilities or None): greedy at temperature 0, else sampled from the nucleus of
    the top_k most likely tokens.

    These are laid out on [0, 1) by falling probability, all tokens by their number where there is neither top_k nor
    top_p: sorting the vocabulary is then the largest part of a small model's step.
    """
    if not temperature:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0] if logprobs else None
    probabilities, order = (logits / temperature).softmax(-1), None
    if top_p < 1 or top_k:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        if top_k:
            probabilities[:, top_k:] = 0
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        above = probabilities.cumsum(-1, dtype=torch.float64) - probabilities
        probabilities = probabilities * ((above < top_p) | (above == 0))
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    whole = cumulative[:, -1:].contiguous()
    chosen = torch.searchsorted(cumulative, draws[:, None] * whole, right=True)
    # A draw next to 1 may round to the whole: then the last token that has any probability.
    chosen = torch.minimum(chosen, torch.searchsorted(cumulative, whole))
    found = (probabilities.gather(-1, chosen).double() / whole).log()[:, 0] if logprobs else None
    return (chosen if order is None else order.gather(-1, chosen))[:, 0], found


def common_prefix(sequences: Sequence[list[int]] | Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with, at least one of each being left over."""
    first, last = min(sequences), max(sequences)
    most = min(map(len, sequences)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)
