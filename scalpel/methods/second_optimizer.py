"""A second AdamW on the same parameters, for methods that put updates of another kind between their steps."""

from __future__ import annotations

from pathlib import Path

import torch

from scalpel.errors import UserError
from scalpel.methods.ranks import Ranks

FILE = "second_optimizer.pt"


class SecondOptimizer:
    """AdamW with a state and a clip norm of its own; its rate is constant."""

    def __init__(self, trainer, learning_rate: float, weight_decay: float, max_grad_norm: float):
        """UserError under ZeRO-2, whose first optimizer owns gradients and parameters."""
        if trainer.is_deepspeed_enabled:
            raise UserError(
                "train_settings: `engine: zero2` allows no second optimizer, which this method needs; "
                "use fsdp or single."
            )
        self.trainer, self.max_grad_norm = trainer, max_grad_norm
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay)

    def step(self, losses) -> float:
        """One update on the sum of `losses`, an iterable of scalars each with its own graph; returns that sum.

        Gradients are taken loss by loss, so that one micro-batch at a time is held.
        """
        total = 0.0
        for loss in losses:
            self.trainer.accelerator.backward(loss * self.trainer.accelerator.gradient_accumulation_steps)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def save(self, directory: Path) -> None:
        """Write its state to a directory of the run's resumable state, on rank 0."""
        if Ranks.here().first:
            directory.mkdir(parents=True, exist_ok=True)
            torch.save(self.optimizer.state_dict(), directory / FILE)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote."""
        state = torch.load(directory / FILE, map_location=self.trainer.accelerator.device, weights_only=True)
        self.optimizer.load_state_dict(state)
