"""Schedules of a method's own quantities over batches of rollouts. Nothing here imports torch."""

from __future__ import annotations

import math


def cosine(number: int, over: int, first: float, last: float) -> float:
    """From `first` at 0 to `last` at `over` along half a cosine; `last` from there on."""
    if number >= over:
        return last
    return last + (first - last) * (1 + math.cos(math.pi * number / over)) / 2


def warmed_cosine(number: int, warmup: int, over: int, first: float, last: float) -> float:
    """From 0 to `first` in a straight line over `warmup`, then `cosine` over the next `over`."""
    if number < warmup:
        return first * number / warmup
    return cosine(number - warmup, over, first, last)
