"""Supervised fine-tuning on the chosen traces, on TRL's SFTTrainer (paper section 3.2).

Loss: the mean over all trained tokens of the step, across micro-batches and ranks. With ``loss_on: all``
these are all tokens but the first, which nothing predicts; with ``completion`` the assistant's and its EOS.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from scalpel.chat import load_tokenizer, token_ids
from scalpel.config import SFTRecipe, TrainSettings
from scalpel.errors import UserError
from scalpel.methods import base as shared

IGNORED = -100
COLUMNS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "mean_token_accuracy",
}


class ScheduledSFTTrainer(SFTTrainer):
    """SFTTrainer that takes its micro-batches from a schedule instead of a sampler."""

    def __init__(self, *args, micro_batches: list[list[int]], journal: shared.Journal, **kwargs):
        self.micro_batches, self.journal = micro_batches, journal
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(self.train_dataset, batch_sampler=self.micro_batches, collate_fn=self._collate)
        return self.accelerator.prepare(loader)

    def _collate(self, examples: list[dict]) -> dict:
        batch = self.data_collator(examples)
        batch["position"] = torch.tensor([example["position"] for example in examples])
        return batch

    def compute_loss(self, model, inputs, *args, **kwargs):
        positions = inputs.pop("position").tolist()
        rows = self.train_dataset.select_columns(["row", "uuid"])[positions]
        step = self.state.global_step + 1
        self.journal.add(
            [
                {"step": step, "position": position, "row": row, "uuid": uuid}
                for position, row, uuid in zip(positions, rows["row"], rows["uuid"], strict=True)
            ]
        )
        return super().compute_loss(model, inputs, *args, **kwargs)


def examples(tokenizer, rows: dict[int, dict], steps: list[list[int]], recipe: SFTRecipe) -> list[dict]:
    """One example per place in the schedule: input_ids, labels, position, row, uuid."""
    tokenized = {}
    for row in {row for step in steps for row in step}:
        item = rows[row]
        ids = token_ids(tokenizer, item["problem"], item["trace"])
        if len(ids) > recipe.max_tokens:
            raise UserError(
                f"row {row} ({item['uuid']}) has {len(ids)} tokens, more than max_tokens {recipe.max_tokens}; "
                "lower filter.max_tokens or raise the run's."
            )
        trained_from = 1 if recipe.loss_on == "all" else len(token_ids(tokenizer, item["problem"]))
        tokenized[row] = (ids, [IGNORED] * trained_from + ids[trained_from:])
    flat = [row for step in steps for row in step]
    return [
        {
            "input_ids": tokenized[row][0],
            "labels": tokenized[row][1],
            "position": position,
            "row": row,
            "uuid": rows[row]["uuid"],
        }
        for position, row in enumerate(flat)
    ]


def micro_batches(steps: list[list[int]], sequences_per_device: int) -> tuple[list[list[int]], int]:
    """Positions of each micro-batch, and how many make a step: the same number for every step.

    A step smaller than that number repeats no row: it raises, since the settings can be changed at no cost.
    """
    accumulation = max(-(-len(step) // sequences_per_device) for step in steps)
    if min(map(len, steps)) < accumulation:
        raise UserError(
            f"a step of {min(map(len, steps))} sequences cannot be split into {accumulation} micro-batches; "
            "raise train_settings.sequences_per_device."
        )
    batches, start = [], 0
    for step in steps:
        positions = np.arange(start, start + len(step))
        batches += [part.tolist() for part in np.array_split(positions, accumulation)]
        start += len(step)
    return batches, accumulation


def train(recipe: SFTRecipe, base: Path, kept: Path, order: Path, out: Path, settings: TrainSettings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(recipe.seed)
    rows, ordered, epochs = shared.read_rows(kept, order)
    steps = shared.schedule(recipe, rows, ordered, epochs)
    saved_at = shared.checkpoint_steps(len(steps), recipe.checkpoints)
    tokenizer = load_tokenizer(base)
    model = shared.load_model(base, recipe.dtype)
    shared.freeze(model, recipe.trainable)
    batches, accumulation = micro_batches(steps, settings.sequences_per_device)
    journal = shared.Journal(out / "state" / "questions.jsonl")
    keeper = shared.Keeper(out, base, saved_at, len(steps), settings.keep_state, [journal])
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
        train_dataset=Dataset.from_list(examples(tokenizer, rows, steps, recipe)),
        processing_class=tokenizer,
        callbacks=[keeper],
        micro_batches=batches,
        journal=journal,
    )
    shared.run(trainer, keeper, out, base, recipe.trainable, COLUMNS)
    journal.write_parquet(out / "questions.parquet")
    log = pq.read_table(out / "log.parquet")
    tokens = [sum(rows[row]["tokens"] for row in step) for step in steps]
    pq.write_table(log.append_column("tokens", [tokens]), out / "log.parquet", compression="zstd")
