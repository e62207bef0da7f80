"""Supervised fine-tuning on the chosen traces, on TRL's SFTTrainer (paper section 3.2).

With ``loss_on: all`` all tokens but the first, which nothing predicts, are trained on; with ``completion`` the
assistant's and its EOS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from trl import SFTConfig

from scalpel.artifact.files import STATE
from scalpel.chat import load_tokenizer, token_ids
from scalpel.errors import UserError
from scalpel.methods.faults import weights
from scalpel.methods.freezing import freeze
from scalpel.methods.likelihood import LikelihoodTrainer, micro_batches
from scalpel.methods.loop import (
    Saving,
    TrainingRun,
    carry_out,
    common_arguments,
    make_deterministic,
    step_flops,
    training_dtype,
    write_log,
)
from scalpel.methods.ranks import Ranks
from scalpel.methods.schedule import Questions, by_count, by_tokens, checkpoint_steps, read_questions
from scalpel.methods.sft import SFT, SFTRecipe
from scalpel.methods.state import QUESTIONS, Journal
from scalpel.weights import load_model

COLUMNS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "mean_token_accuracy",
}


def schedule(recipe: SFTRecipe, questions: Questions) -> list[list[int]]:
    """Rows of every optimizer step. A run given in epochs ends with the last row of its last epoch."""
    ordered = questions.ordered if recipe.epochs is None else questions.until_epoch(recipe.epochs)
    if recipe.matching == "tokens":
        lengths = [questions.rows[row]["tokens"] for row in ordered.tolist()]
        return by_tokens(ordered, lengths, recipe.tokens_per_step, recipe.steps)
    size = recipe.sequences_per_step if recipe.matching == "sequences" else recipe.questions_per_step
    if recipe.epoch_rest == "dropped":
        assert recipe.epochs is not None
        epochs = [questions.ordered[questions.epochs == number] for number in range(recipe.epochs)]
        return [step for rows in epochs for step in by_count(rows, size, len(rows) // size)]
    return by_count(ordered, size, recipe.steps)


def tokenized(tokenizer: Any, rows: dict[int, dict], used: list[int], recipe: SFTRecipe) -> Dataset:
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


def arguments(run: TrainingRun, steps: int, accumulation: int, gpu: bool | None = None) -> dict[str, Any]:
    """Of TRL's SFTConfig. gpu: as in `common_arguments`."""
    return common_arguments(run, steps, gpu) | {
        "per_device_train_batch_size": run.settings.sequences_per_device,
        "gradient_accumulation_steps": accumulation,
        "max_length": None,  # rows over the cap were refused: nothing is cut
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def trl_config(run: TrainingRun, steps: int, gpu: bool) -> tuple[type, dict[str, Any]]:
    """TRL's class and its arguments, as far as they are known before the rows are."""
    settings = run.settings
    accumulation = SFT.accumulation(run.recipe, settings.sequences_per_device, settings.ranks * settings.nodes)
    return SFTConfig, arguments(run, steps, accumulation, gpu)


def train(run: TrainingRun, examples: Callable[..., Dataset] = tokenized) -> None:
    """Carry out one run (scalpel/methods/run.py). examples: what is trained on, as `tokenized` makes it."""
    recipe, settings, ranks = run.recipe, run.settings, Ranks.here()
    make_deterministic(run.seed, settings.threads)
    questions = read_questions(run.kept, run.order)
    rows, steps = questions.rows, schedule(recipe, questions)
    saved_at = checkpoint_steps(len(steps), recipe.checkpoints)
    tokenizer = load_tokenizer(run.base)
    model = load_model(run.start, training_dtype(recipe, settings))
    freeze(model, run.trainable)
    batches, accumulation = micro_batches(steps, settings.sequences_per_device, ranks.count)
    places = [row for step in steps for row in step]
    spent = [
        {"questions": len(step), "tokens": (tokens := sum(rows[row]["tokens"] for row in step)), "written": 0,
         "flops": step_flops(model, tokens)}
        for step in steps
    ]  # fmt: skip
    dataset = examples(tokenizer, rows, list(dict.fromkeys(places)), recipe)
    lengths = zip(dataset["row"], dataset["input_ids"], dataset["trained_from"], strict=True)
    trained = {row: len(ids) - start for row, ids, start in lengths}
    journal = Journal(run.out / STATE / "questions.jsonl", QUESTIONS)
    saving = Saving(run, saved_at, [journal])
    trainer = LikelihoodTrainer(
        model=model,
        args=SFTConfig(**arguments(run, len(steps), accumulation)),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[saving],
        schedule=places,
        micro_batches=batches,
        uuids={row: rows[row]["uuid"] for row in places},
        journal=journal,
        least_rate=recipe.least_rate,
        weights=weights(recipe, [[trained[row] for row in step] for step in steps]),
    )
    log = carry_out(trainer, saving, run, COLUMNS)
    if log is not None:
        journal.write_parquet(run.out / "questions.parquet")
        write_log(log, spent, run.out)
