"""Supervised fine-tuning on the chosen traces, on TRL's SFTTrainer (paper section 3.2).

Loss: the mean over all trained tokens of the step, across micro-batches and ranks. With ``loss_on: all``
these are all tokens but the first, which nothing predicts; with ``completion`` the assistant's and its EOS.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate.data_loader import DataLoaderShard
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from scalpel.chat import load_tokenizer, token_ids
from scalpel.config import SFTRecipe, TrainSettings
from scalpel.errors import UserError
from scalpel.methods import base as shared

IGNORED = -100
BLANK = -1  # place of an example that fills a micro-batch and trains nothing
COLUMNS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "mean_token_accuracy",
}


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


class ScheduledSFTTrainer(SFTTrainer):
    """SFTTrainer that takes its micro-batches from a schedule instead of a sampler."""

    def __init__(
        self,
        *args,
        schedule: list[int],
        micro_batches: list[list[int]],
        uuids: dict[int, str],
        journal: shared.Journal,
        **kwargs,
    ):
        self.schedule, self.micro_batches, self.uuids, self.journal = schedule, micro_batches, uuids, journal
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        places = Places(self.train_dataset, self.schedule)
        world = shared.World.here()
        mine = self.micro_batches[world.rank :: world.ranks]
        return DataLoaderShard(
            places, batch_sampler=mine, collate_fn=self._collate, device=self.accelerator.device, num_workers=0
        )

    def _collate(self, examples: list[dict]) -> dict:
        batch = self.data_collator(examples)
        batch["position"] = torch.tensor([example["position"] for example in examples])
        return batch

    def compute_loss(self, model, inputs, *args, **kwargs):
        world = shared.World.here()
        positions = sorted(p for p in world.everyone(inputs.pop("position").tolist()) if p != BLANK)
        step = self.state.global_step + 1
        if world.first:
            rows = [(position, self.schedule[position]) for position in positions]
            self.journal.add(
                [{"step": step, "position": place, "row": row, "uuid": self.uuids[row]} for place, row in rows]
            )
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not positions:
            for name in ("entropy", "mean_token_accuracy"):  # of blanks alone there is none
                self._metrics["train"][name].pop()
        return loss


def tokenized(tokenizer, rows: dict[int, dict], used: list[int], recipe: SFTRecipe) -> Dataset:
    """One example per row: row, input_ids (int32), trained_from (the first place that is trained on)."""
    ids, trained_from = [], []
    for row in used:
        item = rows[row]
        ids.append(np.array(token_ids(tokenizer, item["problem"], item["trace"]), dtype=np.int32))
        if len(ids[-1]) > recipe.max_tokens:
            raise UserError(
                f"row {row} ({item['uuid']}) has {len(ids[-1])} tokens, more than max_tokens {recipe.max_tokens}; "
                "lower filter.max_tokens or raise the run's."
            )
        trained_from.append(1 if recipe.loss_on == "all" else len(token_ids(tokenizer, item["problem"])))
    return Dataset.from_dict({"row": used, "input_ids": ids, "trained_from": trained_from})


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


def train(recipe: SFTRecipe, base: Path, kept: Path, order: Path, out: Path, settings: TrainSettings) -> None:
    shared.settle(recipe, settings)
    rows, ordered, epochs = shared.read_rows(kept, order)
    steps = shared.schedule(recipe, rows, ordered, epochs)
    saved_at = shared.checkpoint_steps(len(steps), recipe.checkpoints)
    tokenizer = load_tokenizer(base)
    model = shared.load_policy(base, recipe.dtype, settings.engine)
    shared.freeze(model, recipe.trainable)
    batches, accumulation = micro_batches(steps, settings.sequences_per_device, shared.World.here().ranks)
    schedule = [row for step in steps for row in step]
    journal = shared.Journal(out / shared.STATE / "questions.jsonl", shared.QUESTIONS)
    keeper = shared.Keeper(out, base, saved_at, settings, recipe.dtype, [journal])
    trainer = ScheduledSFTTrainer(
        model=model,
        args=SFTConfig(
            **shared.common_arguments(recipe, settings, out, len(steps)),
            per_device_train_batch_size=settings.sequences_per_device,
            gradient_accumulation_steps=accumulation,
            max_length=None,  # rows over the cap were refused: nothing is cut
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=tokenized(tokenizer, rows, list(dict.fromkeys(schedule)), recipe),
        processing_class=tokenizer,
        callbacks=[keeper],
        schedule=schedule,
        micro_batches=batches,
        uuids={row: rows[row]["uuid"] for row in schedule},
        journal=journal,
    )
    shared.run(trainer, keeper, out, base, recipe.trainable, COLUMNS)
    if not keeper.world.first:
        return
    journal.write_parquet(out / "questions.parquet")
    log = pq.read_table(out / "log.parquet")
    tokens = [sum(rows[row]["tokens"] for row in step) for step in steps]
    pq.write_table(log.append_column("tokens", [tokens]), out / "log.parquet", compression="zstd")
