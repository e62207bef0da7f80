"""What a token adds to the loss, before the normaliser: functions of log-probabilities (sequences, tokens), in nats."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch

Tensor: TypeAlias = torch.Tensor


def surrogate(logps: Tensor, old: Tensor, advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = p / p_old; without `low`, -r A."""
    ratio = (logps - old).exp()
    if low is None:
        return -ratio * advantages
    assert high is not None
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def is_clipped(logps: Tensor, old: Tensor, advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """Where the clip of `surrogate` takes the gradient away."""
    if low is None:
        return torch.zeros_like(logps, dtype=torch.bool)
    assert high is not None
    ratio = (logps - old).exp()
    return ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))


def off_policy(logps: Tensor, advantages: Tensor, shaping: str, gamma: float) -> Tensor:
    """-f(p) A of a token that another policy wrote, whose own probability is taken as 1.

    shaping: `shaped`, f(p) = p / (p + gamma) (LUFFY, equation 7 and mix_core_alg.py); `ratio`, f(p) = p; `log`,
    f(p) = log p.
    """
    if shaping == "log":
        return -logps * advantages
    p = logps.exp()
    return -(p / (p + gamma) if shaping == "shaped" else p) * advantages


def kl_from(logps: Tensor, reference: Tensor) -> Tensor:
    """The estimate exp(d) - d - 1 of KL(policy || reference), d = log p_reference - log p."""
    difference = reference - logps
    return difference.exp() - difference - 1


def kept_of(count: int, share: float) -> int:
    """How many of `count` places a share keeps: those that are left when the others are rounded down."""
    return count - math.floor(count * (1 - share) + 1e-9)


def highest(values: Tensor, among: Tensor, share: float) -> Tensor:
    """Of each row's places `among`, the `kept_of` them with the highest values; ties to the earlier place."""
    keep = torch.tensor([kept_of(n, share) for n in among.sum(1).tolist()], device=values.device)[:, None]
    order = values.masked_fill(~among, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return among & (torch.empty_like(order).scatter_(1, order, places) < keep)
