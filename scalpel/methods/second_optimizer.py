"""A second AdamW on the same parameters, for methods that put updates of another kind between their steps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from scalpel.errors import UserError
from scalpel.methods.ranks import Ranks

FILE = "second_optimizer.pt"


class SecondOptimizer:
    """AdamW with a state and a clip norm of its own; its rate is constant.

    It is made at its first use, when the engine has laid out the parameters. On sharded ones (FSDP) every call is a
    collective of all ranks.
    """

    def __init__(self, trainer: Any, learning_rate: float, weight_decay: float, max_grad_norm: float):
        """UserError under ZeRO-2, whose first optimizer owns gradients and parameters."""
        if trainer.is_deepspeed_enabled:
            raise UserError(
                "train_settings: `engine: zero2` allows no second optimizer, which this method needs; "
                "use fsdp or single."
            )
        self.trainer, self.max_grad_norm = trainer, max_grad_norm
        self.options = {"lr": learning_rate, "weight_decay": weight_decay}
        self.optimizer: torch.optim.AdamW | None = None
        self.saved: Path | None = None  # a state that is to be read

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained ones by name."""
        return {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}

    @property
    def sharded(self) -> bool:
        return any(hasattr(p, "full_tensor") for p in self.parameters.values())

    def step(
        self, losses: Iterable[torch.Tensor], frozen: dict[str, torch.Tensor] | None = None
    ) -> tuple[float, float]:
        """One update on the sum of `losses`, scalars each with its own graph; returns that sum and the gradient's norm.

        Gradients are taken loss by loss, so that one micro-batch at a time is held. frozen: by parameter, true where an
        entry keeps its value.
        """
        self._make()
        assert self.optimizer is not None
        total, accelerator = 0.0, self.trainer.accelerator
        for loss in losses:
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            total += loss.item()
        parameters, frozen = self.parameters, frozen or {}
        with torch.no_grad():
            for name, mask in frozen.items():
                if parameters[name].grad is not None:
                    parameters[name].grad.masked_fill_(mask, 0.0)
            before = {name: parameters[name].detach().clone() for name in frozen}
        norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), self.max_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            for name, mask in frozen.items():
                parameters[name].copy_(torch.where(mask, before[name], parameters[name]))
        self.optimizer.zero_grad(set_to_none=True)
        return total, float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _make(self) -> None:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.parameters.values(), **self.options)
        if self.saved:
            path, self.saved = self.saved, None
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not self.sharded:
                return self.optimizer.load_state_dict(state)
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.trainer.model, self.optimizer, state, options=options)

    def save(self, directory: Path) -> None:
        """Write its state, if it was used yet, to a directory of the run's resumable state, on rank 0."""
        if self.saved:
            self._make()
        if self.optimizer is None:
            return
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_optimizer_state_dict(self.trainer.model, self.optimizer, options=options)
        else:
            state = self.optimizer.state_dict()
        if Ranks.here().first:
            directory.mkdir(parents=True, exist_ok=True)
            torch.save(state, directory / FILE)

    def load(self, directory: Path) -> None:
        """Have what `save` wrote read at the next use."""
        if (directory / FILE).is_file():
            self.saved = directory / FILE
