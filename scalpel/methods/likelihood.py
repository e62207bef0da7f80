"""TRL's SFTTrainer on a schedule: the one place that overrides what is private in it.

Loss: the mean over all trained tokens of the step, across micro-batches and ranks; where sequences are given weights
(faults.py), the sum of them over tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTTrainer

from scalpel.methods.faults import Weight
from scalpel.methods.loop import MethodTrainer, mean_by_tokens
from scalpel.methods.ranks import Ranks
from scalpel.methods.state import Journal

IGNORED = -100
BLANK = -1  # place of an example that fills a micro-batch and trains nothing
MEANS = ("entropy", "mean_token_accuracy")  # that the trainer logs of each micro-batch


class Places(torch.utils.data.Dataset):
    """Examples by their place in the schedule; the dataset itself holds every row once, whatever the epochs."""

    def __init__(self, dataset: Dataset, schedule: list[int]):
        self.dataset, self.schedule = dataset, schedule
        self.index = {row: index for index, row in enumerate(dataset["row"])}

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, position: int) -> dict:
        if position == BLANK:  # two tokens that are not trained on
            return {"input_ids": [0, 0], "labels": [IGNORED, IGNORED], "position": BLANK}
        example = self.dataset[self.index[self.schedule[position]]]
        ids, start = example["input_ids"], example["trained_from"]
        return {"input_ids": ids, "labels": [IGNORED] * start + ids[start:], "position": position}


class LikelihoodTrainer(MethodTrainer, SFTTrainer):
    """SFTTrainer that takes its micro-batches from a schedule instead of a sampler, and writes down what it asked.

    schedule: row of each place. micro_batches: places of each micro-batch of all ranks (`micro_batches`). weights: of
    the tokens of each place, in the place of one over their number in the step.
    """

    def __init__(
        self, *args: Any, schedule: list[int], micro_batches: list[list[int]], uuids: dict[int, str], journal: Journal,
        least_rate: float = 0.0, weights: list[Weight] | None = None, **kwargs: Any,
    ):  # fmt: skip
        self.schedule, self.micro_batches, self.uuids, self.journal = schedule, micro_batches, uuids, journal
        self.least_rate = least_rate
        self._trained_tokens: list[int] = []  # of each micro-batch since the last log
        super().__init__(*args, **kwargs)
        self.weights = weights
        if weights is not None:
            self.compute_loss_func = self._weighted

    def get_train_dataloader(self) -> DataLoader:
        places = Places(self.train_dataset, self.schedule)
        ranks = Ranks.here()
        mine = self.micro_batches[ranks.rank :: ranks.count]
        return DataLoaderShard(
            places, batch_sampler=mine, collate_fn=self._collate, device=self.accelerator.device, num_workers=0
        )

    def _collate(self, examples: list[dict]) -> dict:
        batch = self.data_collator(examples)
        batch["position"] = torch.tensor([example["position"] for example in examples])
        return batch

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ranks = Ranks.here()
        mine = inputs.pop("position").tolist()
        positions = sorted(p for p in ranks.everyone(mine) if p != BLANK)
        step = self.state.global_step + 1
        if ranks.first:
            rows = [(position, self.schedule[position]) for position in positions]
            self.journal.add(
                [{"step": step, "position": place, "row": row, "uuid": self.uuids[row]} for place, row in rows]
            )
        trained = int((inputs["labels"][:, 1:] != IGNORED).sum())
        self._trained_tokens.append(sum(ranks.everyone([trained])))
        if self.weights is not None:
            self._mine = [Weight(0.0, 0.0) if place == BLANK else self.weights[place] for place in mine]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _weighted(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Value: the loss that is reported; gradient: that of the tokens learnt from."""
        logits, wanted = outputs.logits[:, :-1].float(), labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        ).sum(1)
        logged, learnt = (torch.tensor(column, device=losses.device) for column in zip(*self._mine, strict=True))
        loss = (losses * learnt).sum()
        return loss + ((losses * logged).sum() - loss).detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mean_by_tokens(self._metrics["train"], MEANS, self._trained_tokens)
        self._trained_tokens = []
        super().log(logs, start_time)


def micro_batches(steps: list[list[int]], sequences_per_device: int, ranks: int = 1) -> tuple[list[list[int]], int]:
    """Places of each micro-batch, and how many of each rank's make a step: the trainer wants the same for every step.

    Rank r takes every ranks-th micro-batch from the r-th on. A step with fewer sequences is filled up with blanks.
    """
    accumulation = max(-(-len(step) // (sequences_per_device * ranks)) for step in steps)
    batches, start = [], 0
    for step in steps:
        places = np.arange(start, start + len(step))
        batches += [part.tolist() or [BLANK] for part in np.array_split(places, accumulation * ranks)]
        start += len(step)
    return batches, accumulation
