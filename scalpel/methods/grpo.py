"""Group relative policy optimisation with verifiable rewards, on TRL's GRPOTrainer (paper section 3.1).

Advantage: reward minus the mean of the question's group, not divided by its standard deviation
(``scale_rewards: none``); loss dr_grpo: the token sum over batch x max_completion_tokens. With one update per
batch of rollouts the probability ratio is 1, so epsilon never binds.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from scalpel.chat import conversation, load_tokenizer
from scalpel.config import GRPORecipe, TrainSettings
from scalpel.data.answers import Grader
from scalpel.errors import UserError
from scalpel.methods import base as shared
from scalpel.methods import rewards

COLUMNS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "reward": "reward",
    "rewards/accuracy/mean": "accuracy_reward",
    "rewards/format/mean": "format_reward",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated_fraction",
}


ROLLOUTS = pa.schema(
    {
        "step": pa.int64(),
        "row": pa.int64(),
        "uuid": pa.string(),
        "prompt": pa.string(),  # the question, not rendered
        "completion": pa.string(),
        "accuracy_reward": pa.float64(),  # null: the gold answer cannot be parsed
        "format_reward": pa.float64(),
        "completion_ids": pa.list_(pa.int32()),
        "completion_length": pa.int64(),  # tokens
    }
)


class JournalingGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that writes down which questions each step really asked and what was answered."""

    def __init__(self, *args, questions: shared.Journal, rollouts: shared.Journal, **kwargs):
        self.questions, self.rollouts = questions, rollouts
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        step = self.state.global_step + 1
        self.questions.add(
            [
                {"step": step, "position": example["position"], "row": example["row"], "uuid": example["uuid"]}
                for example in inputs[:: self.num_generations]
            ]
        )
        self.rollouts.add(
            [
                {
                    "step": step,
                    "row": example["row"],
                    "uuid": example["uuid"],
                    "prompt": example["prompt"][0]["content"],
                    "completion": completion[0]["content"],
                    "accuracy_reward": None if accuracy != accuracy else accuracy,  # NaN: the gold has no answer
                    "format_reward": form,
                    "completion_ids": list(ids),
                    "completion_length": len(ids),
                }
                for example, completion, ids, (accuracy, form) in zip(
                    inputs, completions, completion_ids_list, scores.tolist(), strict=True
                )
            ]
        )
        return scores


def reward_functions(grader: Grader) -> list:
    """The two rewards in TRL's calling form; their names become names in the log."""

    def accuracy(completions, answer, **_):
        return rewards.accuracy(grader, answer, [completion[0]["content"] for completion in completions])

    def format(completions, **_):
        return rewards.well_formed([completion[0]["content"] for completion in completions])

    return [accuracy, format]


def micro_batch(recipe: GRPORecipe, sequences_per_device: int) -> int:
    """The largest number of completions per micro-batch, up to the setting, that divides a step's."""
    total = recipe.questions_per_step * recipe.generations
    return max(size for size in range(1, min(total, sequences_per_device) + 1) if total % size == 0)


def train(recipe: GRPORecipe, base: Path, kept: Path, order: Path, out: Path, settings: TrainSettings) -> None:
    shared.settle(recipe, settings)
    rows, ordered, epochs = shared.read_rows(kept, order)
    steps = shared.schedule(recipe, rows, ordered, epochs)
    saved_at = shared.checkpoint_steps(len(steps), recipe.checkpoints)
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    model = shared.load_model(base, recipe.dtype)
    shared.freeze(model, recipe.trainable)
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max(rows[row]["prompt_tokens"] for step in steps for row in step)
    if room and longest + recipe.max_completion_tokens > room:
        raise UserError(
            f"a prompt of {longest} tokens and {recipe.max_completion_tokens} completion tokens exceed the model's "
            f"{room} positions; set filter.max_prompt_tokens to {room - recipe.max_completion_tokens} or less."
        )
    size = micro_batch(recipe, settings.sequences_per_device)
    accumulation = recipe.questions_per_step * recipe.generations // size
    if recipe.loss_type == "bnpo" and accumulation > 1:
        raise UserError(
            "loss_type bnpo takes its token mean within each micro-batch, so the result would depend on the device; "
            f"set train_settings.sequences_per_device to {size * accumulation} or use dapo, the mean over the step."
        )
    dataset = Dataset.from_list(
        [
            {
                "prompt": conversation(rows[row]["problem"]),
                "answer": rows[row]["answer"],
                "row": row,
                "uuid": rows[row]["uuid"],
                "position": position,
            }
            for position, row in enumerate(row for step in steps for row in step)
        ]
    )
    questions = shared.Journal(out / shared.STATE / "questions.jsonl", shared.QUESTIONS)
    rollouts = shared.Journal(out / shared.STATE / "rollouts.jsonl", ROLLOUTS)
    keeper = shared.Keeper(out, base, saved_at, len(steps), settings.keep_state, [questions, rollouts])
    with Grader() as grader:
        trainer = JournalingGRPOTrainer(
            model=model,
            reward_funcs=reward_functions(grader),
            args=GRPOConfig(
                **shared.common_arguments(recipe, settings, out, len(steps)),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                num_generations=recipe.generations,
                num_iterations=1,
                max_completion_length=recipe.max_completion_tokens,
                temperature=recipe.temperature,
                top_p=recipe.top_p,
                loss_type=recipe.loss_type,
                beta=recipe.beta,
                epsilon=recipe.epsilon,
                scale_rewards=recipe.scale_rewards,
                reward_weights=[recipe.accuracy_weight, recipe.format_weight],
                mask_truncated_completions=recipe.mask_truncated_completions,
                disable_dropout=recipe.disable_dropout,
                shuffle_dataset=False,
                use_vllm=False,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[keeper],
            questions=questions,
            rollouts=rollouts,
        )
        shared.run(trainer, keeper, out, base, recipe.trainable, COLUMNS)
    questions.write_parquet(out / "questions.parquet")
    rollouts.write_parquet(out / "rollouts.parquet")
