"""Which parameters train, and the proof afterwards that the others stayed as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from scalpel.config.training import Trainable
from scalpel.errors import UserError


def is_trainable(name: str, trainable: Trainable) -> bool:
    """Whether the parameter of this name trains, by its dotted name in an OLMo-2-like model."""
    parts = name.split(".")
    if trainable.only:
        return any(part in trainable.only for part in parts) or (trainable.also_lm_head and "lm_head" in parts)
    if trainable.freeze_mlp_layers and "mlp" in parts:
        return int(parts[parts.index("layers") + 1]) not in trainable.freeze_mlp_layers
    return True


def freeze(model: Any, trainable: Trainable) -> None:
    """Set requires_grad; UserError when a layer to be frozen does not exist or nothing is left to train."""
    layers = model.config.num_hidden_layers
    beyond = [layer for layer in trainable.freeze_mlp_layers if not 0 <= layer < layers]
    if beyond:
        raise UserError(f"trainable.freeze_mlp_layers names layer {beyond[0]}; the model has layers 0 to {layers - 1}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable(name, trainable))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("`trainable` leaves nothing to train; check its names against the model's modules.")


def check_frozen(start: Path, checkpoint: Path, trainable: Trainable, had_gradient: bool) -> dict[str, list[str]]:
    """Compare every tensor of the last checkpoint with the start: {trained, frozen, trained_but_equal} names.

    Raises RuntimeError when a frozen tensor changed, or when no trained one did although some step had a
    gradient. In bfloat16 a small learning rate leaves some trained tensors as they were, so these are
    reported, not refused; a GRPO run whose rewards never differ within a group rightly changes nothing.
    """
    groups: dict[str, list[str]] = {"trained": [], "frozen": [], "trained_but_equal": []}
    with _tensors(start) as before, _tensors(checkpoint) as after:
        for name in sorted(after):
            old, new = before[name].get_tensor(name), after[name].get_tensor(name)
            equal = old.shape == new.shape and torch.equal(old.to(new.dtype), new)
            if not is_trainable(name, trainable):
                if not equal:
                    raise RuntimeError(f"{name} was frozen and changed all the same: the run is not what it says.")
                groups["frozen"].append(name)
            else:
                groups["trained_but_equal" if equal else "trained"].append(name)
    if not groups["trained"] and had_gradient:
        raise RuntimeError("no trained tensor changed: the run did not train.")
    return groups


@contextlib.contextmanager
def _tensors(directory: Path) -> Iterator[dict[str, Any]]:
    """Open safetensors files of a model directory, keyed by tensor name."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(directory.glob("*.safetensors"))]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118 (no iterator)
