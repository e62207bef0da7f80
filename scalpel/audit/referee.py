"""The referee: one optimizer step in plain PyTorch, float32 on the CPU, without any framework's training code.

It knows the right objective, and the wrong ones that frameworks are known to have computed. `classify` says which of
them a step of somebody else's is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

IGNORED = -100
TOLERANCE = 1e-6  # relative, float32


class Example(NamedTuple):
    """Token ids, and which of them the prompt's are; the last one is EOS."""

    ids: list[int]
    prompt: int  # how many


Batches = list[list[list[Example]]]  # by rank, micro-batch and sequence
Losses = list[list[tuple[torch.Tensor, int]]]  # their sum and tokens, by rank and micro-batch


def negative_log_likelihood(
    model: Any, example: Example, first: int, last: int, temperature: float = 1.0
) -> torch.Tensor:
    """Sum of -log p of the tokens first ... last - 1, in nats, at a temperature."""
    ids = torch.tensor([example.ids])
    logits = model(input_ids=ids).logits[0, first - 1 : last - 1].float() / temperature
    return torch.nn.functional.cross_entropy(logits, ids[0, first:last], reduction="sum")


def _gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


class Spans(NamedTuple):
    """Which tokens of a sequence are in the loss."""

    first: Callable[[Example], int]
    last: Callable[[Example], int]


COMPLETION = Spans(lambda e: e.prompt, lambda e: len(e.ids))


def losses(model: Any, batches: Batches, spans: Spans = COMPLETION) -> Losses:
    """(sum of losses, tokens) of every micro-batch, by rank."""
    return [
        [
            (
                torch.stack([negative_log_likelihood(model, e, spans.first(e), spans.last(e)) for e in micro]).sum(),
                sum(spans.last(e) - spans.first(e) for e in micro),
            )
            for micro in rank
        ]
        for rank in batches
    ]


def token_mean(found: Losses) -> torch.Tensor:
    """Right: the token sum over all ranks and micro-batches over the number of all tokens."""
    return sum(loss for rank in found for loss, _ in rank) / sum(n for rank in found for _, n in rank)


def micro_batch_mean(found: Losses) -> torch.Tensor:
    """Wrong: the mean of the micro-batches' token means."""
    means = [loss / n for rank in found for loss, n in rank]
    return sum(means) / len(means)


def rank_mean(found: Losses) -> torch.Tensor:
    """Wrong: the mean of the ranks' token means."""
    means = [sum(loss for loss, _ in rank) / sum(n for _, n in rank) for rank in found]
    return sum(means) / len(means)


def chosen(found: Losses, which: Callable[[int, int], bool]) -> torch.Tensor:
    """The micro-batches of each rank that reach the optimizer, of (index, count), weighed as all of them would be."""
    kept = [[item for i, item in enumerate(rank) if which(i, len(rank))] for rank in found]
    total = sum(n for rank in found for _, n in rank)
    return sum(loss for rank in kept for loss, _ in rank) / total


def objectives(model: Any, batches: Batches) -> dict[str, Callable[[], torch.Tensor]]:
    """Loss by name: the right one first, then what is known to have been computed instead."""
    found = lambda spans=COMPLETION: losses(model, batches, spans)  # noqa: E731
    return {
        "token mean": lambda: token_mean(found()),
        "mean of micro-batch means": lambda: micro_batch_mean(found()),
        "mean of rank means": lambda: rank_mean(found()),
        "first micro-batch alone": lambda: chosen(found(), lambda i, n: i == 0),
        "last micro-batch alone": lambda: chosen(found(), lambda i, n: i == n - 1),
        "first and last micro-batch alone": lambda: chosen(found(), lambda i, n: i in (0, n - 1)),
        "prompt in the loss": lambda: token_mean(found(Spans(lambda e: 1, lambda e: len(e.ids)))),
        "last prompt token in the loss": lambda: token_mean(found(Spans(lambda e: e.prompt - 1, lambda e: len(e.ids)))),
        "EOS not in the loss": lambda: token_mean(found(Spans(lambda e: e.prompt, lambda e: len(e.ids) - 1))),
        "last prompt token in the loss, EOS not": lambda: token_mean(
            found(Spans(lambda e: e.prompt - 1, lambda e: len(e.ids) - 1))
        ),
    }


class Verdict(NamedTuple):
    """Which objective a step took: its name, the relative difference to it and to the right one."""

    name: str | None  # None: none that is known
    difference: float
    from_right: float


def classify(step: dict[str, torch.Tensor], model: Any, batches: Batches) -> Verdict:
    """Compare a step, (old - new) / learning rate by parameter, with the gradient of every objective.

    Differences are ||step - gradient|| / ||gradient|| over all parameters together.
    """
    differences = {}
    for name, objective in objectives(model, batches).items():
        gradient = _gradients(model, objective())
        squares = sum(((step[n] - g).double() ** 2).sum() for n, g in gradient.items())
        norm = sum((g.double() ** 2).sum() for g in gradient.values())
        differences[name] = float((squares / norm).sqrt())
    right = differences["token mean"]
    name, least = min(differences.items(), key=lambda item: item[1])
    return Verdict(name if least < 100 * TOLERANCE else None, least, right)
