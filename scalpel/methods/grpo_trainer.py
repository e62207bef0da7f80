"""Group relative policy optimisation with verifiable rewards, on TRL's GRPOTrainer (paper section 3.1).

Advantage: reward minus the mean of the question's group, not divided by its standard deviation
(``scale_rewards: none``); loss dr_grpo: the token sum over batch x max_completion_tokens. With one update per
batch of rollouts the probability ratio is 1, so epsilon never binds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from scalpel.chat import conversation, load_tokenizer
from scalpel.config import GRPORecipe, TrainSettings
from scalpel.data.answers import Grader
from scalpel.errors import UserError
from scalpel.launch.rollouts import Rollouts, full_weights
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
    """GRPOTrainer that writes down which questions each step really asked and what was answered.

    With `servers` the completions come from them; their random numbers follow from seed, step and place alone.
    """

    def __init__(
        self, *args, questions: shared.Journal, rollouts: shared.Journal, servers: Rollouts | None = None, **kwargs
    ):
        self.questions, self.rollouts, self.servers = questions, rollouts, servers
        self.world = shared.World.here()
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        if self.servers is None:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        prompts = self.world.everyone(prompt_ids)[::num_generations]  # every question stands there once per completion
        step = self.state.global_step
        weights = full_weights(self.accelerator.unwrap_model(self.model))
        completions = None
        if self.world.first:
            seeds = np.random.SeedSequence([self.args.seed, step]).generate_state(len(prompts) * num_generations, "u8")
            seeds = (seeds >> 1).reshape(len(prompts), num_generations).tolist()
            sampling = {
                "max_tokens": self.max_completion_length,
                "temperature": self.args.temperature,
                "top_p": self.args.top_p,
            }
            groups = self.servers.complete(prompts, seeds, weights, step, sampling)
            completions = [ids for group in groups for ids in group]
        completions = self.world.from_first(completions)
        start = self.world.rank * len(prompt_ids)
        return completions[start : start + len(prompt_ids)], None

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # of all ranks
        step, start = self.state.global_step + 1, self.world.rank * len(inputs)
        mine = scores[start : start + len(inputs)].tolist()
        rows = [
            {
                "step": step,
                "position": example["position"],
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
                inputs, completions, completion_ids_list, mine, strict=True
            )
        ]
        rows = self.world.everyone(rows)
        if self.world.first:
            asked = rows[:: self.num_generations]
            self.questions.add([{name: row[name] for name in shared.QUESTIONS.names} for row in asked])
            self.rollouts.add([{name: row[name] for name in ROLLOUTS.names} for row in rows])
        return scores


def reward_functions(grader: Grader) -> list:
    """The two rewards in TRL's calling form; their names become names in the log."""

    def accuracy(completions, answer, **_):
        return rewards.accuracy(grader, answer, [completion[0]["content"] for completion in completions])

    def format(completions, **_):
        return rewards.well_formed([completion[0]["content"] for completion in completions])

    return [accuracy, format]


def micro_batch(recipe: GRPORecipe, sequences_per_device: int, ranks: int = 1) -> int:
    """The largest number of completions per micro-batch, up to the setting, that divides a rank's share of a step."""
    total, left = divmod(recipe.questions_per_step * recipe.generations, ranks)
    if left:
        raise UserError(
            f"{recipe.questions_per_step} questions x {recipe.generations} completions a step do not divide by "
            f"{ranks} ranks; change train_settings.ranks, generations or questions_per_step."
        )
    return max(size for size in range(1, min(total, sequences_per_device) + 1) if total % size == 0)


def train(recipe: GRPORecipe, base: Path, kept: Path, order: Path, out: Path, settings: TrainSettings) -> None:
    shared.settle(recipe, settings)
    rows, ordered, epochs = shared.read_rows(kept, order)
    steps = shared.schedule(recipe, rows, ordered, epochs)
    saved_at = shared.checkpoint_steps(len(steps), recipe.checkpoints)
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    model = shared.load_policy(base, recipe.dtype, settings.engine)
    shared.freeze(model, recipe.trainable)
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max(rows[row]["prompt_tokens"] for step in steps for row in step)
    if room and longest + recipe.max_completion_tokens > room:
        raise UserError(
            f"a prompt of {longest} tokens and {recipe.max_completion_tokens} completion tokens exceed the model's "
            f"{room} positions; set filter.max_prompt_tokens to {room - recipe.max_completion_tokens} or less."
        )
    ranks = shared.World.here().ranks
    size = micro_batch(recipe, settings.sequences_per_device, ranks)
    accumulation = recipe.questions_per_step * recipe.generations // (size * ranks)
    if recipe.loss_type == "bnpo" and accumulation * ranks > 1:
        raise UserError(
            "loss_type bnpo takes its token mean within each micro-batch, so the result would depend on the device; "
            f"set train_settings.sequences_per_device to {size * accumulation * ranks} with one rank, or use dapo, the "
            "mean over the step."
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
    keeper = shared.Keeper(out, base, saved_at, settings, recipe.dtype, [questions, rollouts])
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
            servers=Rollouts.of_environment(settings.server.start_seconds) if settings.server else None,
        )
        shared.run(trainer, keeper, out, base, recipe.trainable, COLUMNS)
    if not keeper.world.first:
        return
    questions.write_parquet(out / "questions.parquet")
    rollouts.write_parquet(out / "rollouts.parquet")
