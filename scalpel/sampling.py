"""Sampling by inversion: every completion has its own random numbers, so neither the batch size nor the other
prompts decide what is sampled. Used by evaluation and by the rollout server's transformers engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64  # tokens by which a cache grows, so that not every new token copies it


class Growing(DynamicLayer):
    """Keys and values written in place into room that is there already; `keys` and `values` are views of it."""

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.room = [keys[..., :0, :], values[..., :0, :]]
        start = self.get_seq_length()
        end = start + keys.shape[-2]
        if end > self.room[0].shape[-2] or self.room[0].shape[0] != keys.shape[0]:
            old = (self.keys, self.values) if start else self.room
            self.room = [t.new_empty((*keys.shape[:2], end + ROOM, keys.shape[-1])) for t in (keys, values)]
            for room, kept in zip(self.room, old, strict=True):
                room[..., :start, :] = kept
        for room, new in zip(self.room, (keys, values), strict=True):
            room[..., start:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values


@torch.inference_mode()
def complete(
    model, tokenizer, prompts: list[list[int]], draws: list[np.ndarray], temperature: float, top_p: float
) -> list[list[list[int]]]:
    """For every prompt its completions as token ids, without EOS.

    prompts: ids, none empty. draws: per prompt float64 (samples, most new tokens) in [0, 1); the inverse of the
    cumulative probability turns each into a token.
    """
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    prefix = common_prefix(prompts)
    cache = Cache(layers=[Growing() for _ in range(model.config.num_hidden_layers)])
    if prefix:
        forward(model, torch.tensor([prompts[0][:prefix]]), cache)
        cache.batch_repeat_interleave(len(prompts))
    width = max(map(len, prompts)) - prefix  # padding stands between the shared prefix and the rest
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width + prefix - len(p)) + p[prefix:] for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])
    place = torch.arange(width) - width + lengths[:, None]  # position of each column, below `prefix` for padding
    mask = torch.cat([torch.ones(len(prompts), prefix, dtype=torch.long), (place >= prefix).long()], dim=1)
    logits = forward(model, ids, cache, mask, place.clamp(min=0))

    owners = [(n, sample) for n, d in enumerate(draws) for sample in range(len(d))]  # of the rows of the batch
    uniform = torch.zeros(len(owners), max(d.shape[1] for d in draws), dtype=torch.float64)
    for row, (n, sample) in enumerate(owners):
        uniform[row, : draws[n].shape[1]] = torch.from_numpy(draws[n][sample])
    completions: list[list[list[int]]] = [[[] for _ in d] for d in draws]
    rows = torch.tensor([n for n, _ in owners])
    cache.batch_select_indices(rows.to(model.device))
    logits, mask, lengths = logits[rows.to(model.device)], mask[rows], lengths[rows]
    ended = [False] * len(owners)
    for step in range(uniform.shape[1]):
        tokens = pick(logits, uniform[:, step], temperature, top_p)
        for row, token in enumerate(tokens.tolist()):
            n, sample = owners[row]
            if not ended[row] and token not in ends:
                completions[n][sample].append(token)
                ended[row] = step + 1 == draws[n].shape[1]
            else:
                ended[row] = True
        if all(ended):
            break
        if sum(ended) > 0.25 * len(ended):  # the others go on without them
            kept = [row for row in range(len(ended)) if not ended[row]]
            owners, ended = [owners[row] for row in kept], [False] * len(kept)
            rows = torch.tensor(kept)
            cache.batch_select_indices(rows.to(model.device))
            tokens, mask, lengths, uniform = tokens[rows], mask[rows], lengths[rows], uniform[rows]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = forward(model, tokens[:, None], cache, mask, lengths[:, None] + step)
    return completions


def forward(model, ids, cache, mask=None, positions=None):
    """Logits of the last column, float32 (rows, vocabulary); keys and values go into `cache`."""
    on = {"attention_mask": mask, "position_ids": positions}
    on = {name: tensor.to(model.device) for name, tensor in on.items() if tensor is not None}
    output = model(ids.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1, **on)
    return output.logits[:, -1].float()


def pick(logits, draws, temperature: float, top_p: float):
    """Token ids (rows,) on the CPU: greedy at temperature 0, else sampled from the top-p nucleus."""
    if not temperature:
        return logits.argmax(-1).cpu()
    probabilities, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    above = probabilities.cumsum(-1, dtype=torch.float64) - probabilities
    nucleus = (above < top_p) | (above == 0)
    cumulative = (probabilities * nucleus).cumsum(-1, dtype=torch.float64)
    chosen = (cumulative <= draws.to(logits.device)[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return order.gather(-1, chosen.clamp(max=nucleus.sum(-1, keepdim=True) - 1))[:, 0].cpu()


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, at least one of each being left over."""
    first, last = min(sequences), max(sequences)
    most = min(map(len, sequences)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)
