"""MIFO (scalpel/methods/interleaved_trainer.py): SFT updates on tokens of high entropy, with the entries of the
parameters frozen that the policy updates moved most."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from scalpel.errors import UserError
from scalpel.methods.interleaved_trainer import InterleavedTrainer
from scalpel.methods.mifo import MIFORecipe
from scalpel.methods.mixed import entries
from scalpel.methods.rollouts import Rollout
from scalpel.methods.token_losses import highest, kept_of

MOVED = "mifo-rank{rank}of{count}.safetensors"  # of a state: this rank's shards


class MIFOTrainer(InterleavedTrainer):
    columns = InterleavedTrainer.columns | {"mifo/frozen": "frozen_share"}
    recipe: MIFORecipe

    def __init__(self, *args: Any, **kwargs: Any):
        self.since: dict[str, torch.Tensor] = {}  # parameters when the policy updates at hand began
        self.importance: dict[str, torch.Tensor] = {}
        self.state_to_read: Path | None = None
        super().__init__(*args, **kwargs)

    def is_hard(self, group: list[Rollout]) -> bool:
        rewards = [rollout.rewards["accuracy"] for rollout in group]
        return None not in rewards and sum(cast("list[float]", rewards)) <= self.recipe.hard_at_most * len(rewards)

    def learnt_tokens(self, entropies: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
        return highest(entropies, among, self.recipe.entropy_share)

    def learnt_count(self, tokens: int) -> int:
        return kept_of(tokens, self.recipe.entropy_share)

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        self.begin()
        return super().write(batch)

    def begin(self) -> None:
        """Take down the parameters before the first policy update, or as a state has them."""
        if self.state_to_read is not None:
            path, self.state_to_read = self.state_to_read, None
            found = {name: tensor.to(self.accelerator.device) for name, tensor in load_file(path).items()}
            for name, parameter in self.second.parameters.items():
                self.since[name] = _like(parameter, found[f"since.{name}"])
                self.importance[name] = _like(parameter, found[f"importance.{name}"])
        elif not self.since:
            self.since = {name: p.detach().clone() for name, p in self.second.parameters.items()}
            self.importance = {name: torch.zeros_like(p) for name, p in self.since.items()}

    def frozen(self) -> dict[str, torch.Tensor]:
        """Of each parameter, the entries with the highest importance, as many as the share says, if they moved."""
        self.begin()
        masks, count, total = {}, 0, 0
        for name, parameter in self.second.parameters.items():
            moved = (parameter.detach() - self.since[name]).abs()
            self.importance[name] = self.recipe.history * self.importance[name] + moved
            importance = self.importance[name]
            whole = importance.full_tensor() if hasattr(importance, "full_tensor") else importance
            kept = int(whole.numel() * self.recipe.frozen_share)
            if kept:
                least = whole.flatten().kthvalue(whole.numel() - kept + 1).values
                count += int(((whole >= least) & (whole > 0)).sum())
                masks[name] = (importance >= float(least)) & (importance > 0)
            total += whole.numel()
        self.measure({"mifo/frozen": count / total})
        return masks

    def sft_update(self, rows: list[int], step: int) -> tuple[float, float]:
        found = super().sft_update(rows, step)
        self.since = {name: p.detach().clone() for name, p in self.second.parameters.items()}
        return found

    def save_more(self, directory: Path) -> None:
        super().save_more(directory)
        if self.state_to_read is not None:
            self.begin()
        tensors = {f"since.{name}": _local(t) for name, t in self.since.items()}
        tensors |= {f"importance.{name}": _local(t) for name, t in self.importance.items()}
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / MOVED.format(rank=self.ranks.rank, count=self.ranks.count))

    def load_more(self, directory: Path) -> None:
        super().load_more(directory)
        path = directory / MOVED.format(rank=self.ranks.rank, count=self.ranks.count)
        if not path.is_file():
            raise UserError(
                f"{directory} was saved by another number of ranks than {self.ranks.count}; go back to that number "
                "in train_settings.ranks, or delete the run's state."
            )
        self.state_to_read = path


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).contiguous()


def _like(parameter: Any, local: torch.Tensor) -> torch.Tensor:
    """A tensor laid out as the parameter is, from this rank's shard."""
    if not hasattr(parameter, "full_tensor"):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


train, trl_config, parts = entries(MIFOTrainer)
