"""FLOPs of sampled optimizer steps, operation by operation, by torch's own formulas (torch.utils.flop_counter).

What is counted is what was computed: matrix products and attention with their padding, whole squares of attention where
a kernel takes them, and whatever gradient checkpointing computes twice. Element-wise work counts nothing. The counter
looks at shapes alone, so the weights are the same with it and without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

SAMPLED = 4  # batches of rollouts, or steps of a method without them, spread over a run
TRAINED, SCORED, WRITTEN = "trained", "scored", "written"  # what FLOPs are spent on: columns of flops.parquet
FLOPS = pa.schema({"step": pa.int64()} | dict.fromkeys((TRAINED, SCORED, WRITTEN), pa.int64()))


def sampled_steps(steps: int, per_batch: int = 1, count: int | None = None) -> frozenset[int]:
    """Optimizer steps that are measured: all steps of `count` batches of rollouts (None: SAMPLED), evenly spaced."""
    batches = -(-steps // per_batch)
    count = min(batches, SAMPLED if count is None else count)
    chosen = {int((i + 0.5) * batches / count) for i in range(count)}
    return frozenset(s for b in chosen for s in range(b * per_batch + 1, (b + 1) * per_batch + 1) if s <= steps)


class Meter:
    """Counts between `start` and `stop` on this rank, in the steps of `sampled`; elsewhere it does nothing."""

    mode: Counter | None

    def __init__(self, sampled: frozenset[int] = frozenset()):
        self.sampled, self.mode = sampled, None
        self.spent: dict[str, int] = {}

    def start(self, step: int) -> None:
        if step in self.sampled:
            self.mode = Counter()
            self.mode.__enter__()
            self.spent = {SCORED: 0, WRITTEN: 0}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is computed within is spent on `name`, SCORED or WRITTEN; what is computed elsewhere on training."""
        before = self.mode.total if self.mode else 0
        yield
        if self.mode:
            self.spent[name] += self.mode.total - before

    def stop(self) -> dict[str, int] | None:
        """FLOPs of the step by what they were spent on; None when it was not measured."""
        if self.mode is None:
            return None
        total = self.mode.total
        self.close()
        return {TRAINED: total - sum(self.spent.values())} | self.spent

    def close(self) -> None:
        """Count no more, whatever happened; may be called at any time."""
        if self.mode is not None:
            mode, self.mode = self.mode, None
            mode.__exit__(None, None, None)


class Counter(TorchDispatchMode):
    """Adds up torch's own formulas for matrix products and attention, and lets every operation run as it is.

    FlopCounterMode has the same formulas, but takes composite operations apart first, which rounds otherwise: a run
    that is counted so ends with other weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = FORMULAS.get(function.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _linear(inputs: torch.Tensor, weight: torch.Tensor, bias: Any = None, out_val: Any = None) -> int:
    return 2 * inputs.numel() * weight.shape[0]


def _matmul(one: torch.Tensor, other: torch.Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * out_val.numel() * one.shape[-1]


def _addmm(added: torch.Tensor, one: torch.Tensor, other: torch.Tensor, *_: Any, **__: Any) -> int:
    """Also with an output's dtype, as TRL's fused head has on GPUs; torch's formula takes that for a shape."""
    return 2 * one.numel() * other.shape[-1]


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, out_val: Any = None, **__: Any
) -> int:
    return sdpa_flop_count(query.shape, _heads(key, query), _heads(value, query))


def _attention_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any,
    out_val: Any = None, **__: Any,
) -> int:  # fmt: skip
    shapes = (gradient.shape, query.shape, _heads(key, query), _heads(value, query))
    return sdpa_backward_flop_count(*shapes)


def _heads(tensor: torch.Tensor, query: torch.Tensor) -> torch.Size:
    """Shape of keys or values with as many heads as the queries have, which kernels share among them."""
    return torch.Size((*tensor.shape[:1], query.shape[1], *tensor.shape[2:]))


ATEN = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = dict(flop_registry) | {
    **dict.fromkeys((ATEN.addmm, ATEN.addmm_, ATEN.baddbmm, ATEN.baddbmm_), _addmm),
    **dict.fromkeys((ATEN.mm, ATEN.bmm), _matmul),
    # Below autograd these are taken apart; where it is off (inference mode) they come whole.
    ATEN.linear: _linear,
    ATEN.matmul: _matmul,
    ATEN.scaled_dot_product_attention: _attention,
}
for kernel in ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu"):
    FORMULAS[getattr(ATEN, f"_scaled_dot_product_{kernel}")] = _attention
    FORMULAS[getattr(ATEN, f"_scaled_dot_product_{kernel}_backward")] = _attention_backward
