"""GRPO with SFT updates between its batches of rollouts, on the traces of hard questions: ReLIFT and MIFO.

A question is hard when its completions' accuracy says so (`is_hard`). Hard questions go to the front of a buffer, in
the order they were asked. After a batch of rollouts was learnt from, and when the buffer holds enough, one update is
made on its first `buffer_size`: the mean -log p of the traces' tokens less the entropy coefficient x their mean
entropy, over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scalpel.methods.loop import TrainingRun
from scalpel.methods.mixed import MixedTrainer, cut
from scalpel.methods.relift import InterleavedRecipe
from scalpel.methods.rollouts import EXPERT, Rollout
from scalpel.methods.second_optimizer import SecondOptimizer


class InterleavedTrainer(MixedTrainer):
    columns = MixedTrainer.columns | {
        "sft/hard": "hard_rate",
        "sft/buffer": "buffer_size",
        "sft/updates": "sft_updates",
        "sft/loss": "sft_loss",
        "sft/grad_norm": "sft_grad_norm",
    }
    recipe: InterleavedRecipe

    def __init__(self, run: TrainingRun, *args: Any, **kwargs: Any):
        self.buffer: list[int] = []  # rows, the newest first
        super().__init__(run, *args, **kwargs)
        recipe = run.recipe
        self.second = SecondOptimizer(self, recipe.sft_learning_rate, recipe.sft_weight_decay, recipe.sft_max_grad_norm)

    # ------------------------------------------------------------ what methods override

    is_hard: Callable[[list[Rollout]], bool]  # whether a question's trace is to be learnt; every subclass says

    def learnt_tokens(self, entropies: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
        """Which of the traces' tokens `among` the SFT update learns from."""
        return among

    def learnt_count(self, tokens: int) -> int:
        """How many that are of a trace of so many."""
        return tokens

    def frozen(self) -> dict[str, torch.Tensor]:
        """Entries of parameters that the SFT update leaves alone."""
        return {}

    # ------------------------------------------------------------ the buffer

    def credit(self, groups: list[list[Rollout]]) -> None:
        super().credit(groups)
        self.buffer = [group[0].row for group in groups if self.is_hard(group)] + self.buffer

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        return super().metrics(groups) | {"sft/hard": sum(map(self.is_hard, groups)) / len(groups)}

    def after_step(self, step: int) -> None:
        super().after_step(step)
        made = 0
        if step % self.per_batch == 0 and len(self.buffer) >= self.recipe.buffer_size:
            rows, self.buffer = self.buffer[: self.recipe.buffer_size], self.buffer[self.recipe.buffer_size :]
            loss, norm = self.sft_update(rows, step)
            made = 1
            self.measure({"sft/loss": loss, "sft/grad_norm": norm})
        self.measure({"sft/buffer": len(self.buffer), "sft/updates": made})

    def sft_update(self, rows: list[int], step: int) -> tuple[float, float]:
        """Loss and norm of the gradient of one update on the traces of these rows."""
        traces = [self.demonstration(row) for row in rows]
        if self.ranks.first:
            self.journals.demonstrations.add(
                [
                    {"step": step, "row": r.row, "uuid": self.rows[r.row]["uuid"], "tokens": len(r.prompt) + len(r.ids)}
                    for r in traces
                ]
            )
        size = self.run.settings.sequences_per_device
        mine = cut(traces, self.ranks.count)
        passes = -(-max(map(len, mine)) // size)
        lengths = [len(trace.ids) for trace in traces]
        counts = sum(map(self.learnt_count, lengths)), sum(lengths)
        inputs = (self.tensors(part) for part in self.blanked(mine[self.ranks.rank], passes))
        loss, norm = self.second.step((self.sft_loss(i, *counts) for i in inputs), self.frozen())
        return sum(self.ranks.everyone([loss])) / self.ranks.count, norm

    def demonstration(self, row: int) -> Rollout:
        """A trace whole, with its EOS."""
        ids = self.trace(row)
        return Rollout(row, -1, 0, self.prompt(row), ids, ended=True, origin=EXPERT, prefix=len(ids))

    def sft_loss(self, inputs: dict[str, Any], learnt: int, whole: int) -> torch.Tensor:
        """One micro-batch's part of the update's loss; gradients are averaged over ranks."""
        logps, entropies = self.scores(self.model_wrapped, inputs)
        mask = inputs["completion_mask"].bool()
        chosen = self.learnt_tokens(entropies.detach(), mask)
        loss = -(logps * chosen).sum() / learnt
        loss = loss - self.recipe.sft_entropy_coefficient * (entropies * mask).sum() / whole
        return loss * self.ranks.count

    # ------------------------------------------------------------ resuming

    def kept(self) -> dict[str, Any]:
        return super().kept() | {"buffer": self.buffer}

    def restore(self, kept: dict[str, Any]) -> None:
        super().restore(kept)
        self.buffer = kept["buffer"]

    def save_more(self, directory: Path) -> None:
        super().save_more(directory)
        self.second.save(directory)

    def load_more(self, directory: Path) -> None:
        super().load_more(directory)
        self.second.load(directory)
