"""TRL's GRPOTrainer on a schedule and on rollouts of our own: the one place that overrides what is private in it.

A step's rollouts are lists of `Rollout`, question after question, the same on every rank. They are written by the
inference engine (scalpel/inference), graded, given credit, and cut into the micro-batches of each rank; the loss is
TRL's. Methods subclass RolloutTrainer and override what they do differently:

* `write`: where a question's rollouts come from (own completions, expert traces among them, a prefix of a trace);
* `credit`: advantages from rewards;
* `taken`: which of a question's rollouts the update learns from;
* `loss`: of one micro-batch, from its log-probabilities;
* `metrics`, `columns`: what is logged of a step, and under which names;
* `after_step`, `after_log`, `save_more`, `load_more`: what happens between steps, and what is resumed from (a buffer,
  a second optimizer).

scalpel/methods/mixed.py has what methods share that learn from expert traces, too.

Several optimizer steps may be made of one batch of rollouts (`updates`, `iterations`); a run stopped among them
resumes with the batch it had.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import pyarrow as pa
import torch
from accelerate.data_loader import DataLoaderShard
from datasets import Dataset
from safetensors.torch import load_file, save_file
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from scalpel.artifact.files import STATE
from scalpel.chat import load_tokenizer, opening, token_ids
from scalpel.errors import UserError
from scalpel.grading.grader import Grader
from scalpel.grading.text import tag_count
from scalpel.inference.remote import Servers, full_weights
from scalpel.inference.requests import Request
from scalpel.inference.transformers_engine import TransformersEngine
from scalpel.methods import rewards
from scalpel.methods.freezing import freeze
from scalpel.methods.loop import (
    MethodTrainer,
    Saving,
    TrainingRun,
    carry_out,
    common_arguments,
    make_deterministic,
    mean_by_tokens,
    per_batch,
    step_flops,
    training_dtype,
    write_log,
)
from scalpel.methods.meter import SCORED, WRITTEN
from scalpel.methods.ranks import Ranks
from scalpel.methods.rollout_recipe import RolloutRecipe, check_writers, rollout_accumulation
from scalpel.methods.schedule import Questions, by_count, checkpoint_steps, read_questions
from scalpel.methods.state import QUESTIONS, Journal
from scalpel.weights import DTYPES, load_model

OWN, EXPERT, MIXED = "own", "expert", "mixed"  # who wrote a rollout: the policy, a trace, or a trace's beginning and it
BUFFER = "rollouts-rank{rank}"  # of a state: the micro-batches that are still to be learnt from
REWARDS = ("accuracy", "format", "tag_count")
MEANS = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
COLUMNS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "reward": "reward",
    "rewards/accuracy": "accuracy_reward",
    "rewards/format": "format_reward",
    "completions/length": "completion_length",
    "completions/truncated": "truncated_fraction",
    "clip_ratio/region_mean": "clipped_fraction",
}
ROLLOUTS = pa.schema(
    {
        "step": pa.int64(),  # the first optimizer step that learns from it
        "row": pa.int64(),
        "uuid": pa.string(),
        "sample": pa.int64(),
        "origin": pa.string(),
        "prompt": pa.string(),  # the question, not rendered
        "completion": pa.string(),
        "accuracy_reward": pa.float64(),  # null: the gold answer cannot be parsed
        "format_reward": pa.float64(),
        "advantage": pa.float64(),
        "prompt_tokens": pa.int64(),
        "completion_ids": pa.list_(pa.int32()),
        "completion_length": pa.int64(),  # tokens
        "prefix_length": pa.int64(),  # of them, tokens that are a trace's
    }
)


DEMONSTRATIONS = pa.schema(  # traces trained on by likelihood in updates of their own
    {"step": pa.int64(), "row": pa.int64(), "uuid": pa.string(), "tokens": pa.int64()}
)


class Journals(NamedTuple):
    """What is written down as a run goes along."""

    questions: Journal
    rollouts: Journal
    demonstrations: Journal

    @classmethod
    def of(cls, out: Path) -> Journals:
        schemas = (QUESTIONS, ROLLOUTS, DEMONSTRATIONS)
        return cls(*(Journal(out / STATE / f"{name}.jsonl", s) for name, s in zip(cls._fields, schemas, strict=True)))


@dataclass
class Rollout:
    """One answer to one question. ids: token ids of the completion, with the one that ended it where it ended.

    prefix: how many of them are an expert trace's. rewards: by name; None where the gold answer cannot be parsed.
    advantage: None where the policy gradient does not learn from it. prefix_advantage: of the prefix's tokens, where it
    is another one. weight: of its likelihood terms.
    """

    row: int
    position: int  # of the question in the run's schedule
    sample: int
    prompt: list[int]
    ids: list[int]
    ended: bool
    origin: str = OWN
    prefix: int = 0
    rewards: dict[str, float | None] = field(default_factory=dict)
    advantage: float | None = 0.0
    prefix_advantage: float | None = None
    weight: float = 1.0


class Ask(NamedTuple):
    """`samples` completions of one question by the current policy.

    position: of the question in the run's schedule. prefix: ids that the completions begin with. prompt: ids in place
    of the question's own. tag: tells random numbers of one question apart.
    """

    position: int
    row: int
    samples: int
    prefix: list[int] = []
    prompt: list[int] | None = None
    tag: tuple[int, ...] = ()


class Update(NamedTuple):
    """What one optimizer step of a batch of rollouts learns from: this rank's micro-batches, and what is logged."""

    micro_batches: list[dict[str, Any]]
    metrics: dict[str, float]


class RolloutTrainer(MethodTrainer, GRPOTrainer):
    """GRPOTrainer whose rollouts are written, graded and credited here. `config`: arguments of GRPOConfig that the
    method adds. columns: names in the trainer's log -> names in log.parquet."""

    columns = COLUMNS

    def __init__(
        self, run: TrainingRun, questions: Questions, steps: list[list[int]], model: Any, tokenizer: Any,
        grader: Grader, journals: Journals, saving: Saving, config: dict[str, Any],
    ):  # fmt: skip
        recipe: RolloutRecipe = run.recipe
        self.run, self.recipe, self.rows, self.grader, self.ranks = run, recipe, questions.rows, grader, Ranks.here()
        if recipe.tag_count_weight:
            self.columns = self.columns | {"rewards/tag_count": "tag_count_reward"}
        self.asked, self.least_rate = steps, recipe.least_rate
        self.journals = journals
        self.per_batch = per_batch(recipe)
        self.accumulation = self.micro_batches_per_step()
        self.opening = opening(tokenizer)
        self.prompts: dict[int, list[int]] = {}
        self.batch: list[Update] = []
        self._tokens: list[int] = []  # trained on in each micro-batch since the last log
        starts = [0]
        for step in steps:
            starts.append(starts[-1] + len(step))
        self.starts = starts  # position of each step's first question
        super().__init__(
            model=model,
            reward_funcs=[_unused],  # TRL wants one; rewards are given in `score`
            args=GRPOConfig(**arguments(run, recipe.steps, self.accumulation, config)),
            train_dataset=Dataset.from_dict({"prompt": [""]}),  # what is asked stands in `steps`
            processing_class=tokenizer,
            callbacks=[saving],
        )
        server = run.settings.server
        self.servers = Servers.of_environment(server.start_seconds, DTYPES[recipe.dtype]) if server else None
        self.engine = None if self.servers else TransformersEngine(model, tokenizer, run.settings.completions_at_once)

    @property
    def batch_number(self) -> int:
        """Batches of rollouts before the one that the step at hand learns from."""
        return self.state.global_step // self.per_batch

    # ------------------------------------------------------------ what methods override

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        """Rollouts of every question of a batch, given as (position, row); `generations` of each."""
        return self.own([Ask(position, row, self.recipe.generations) for position, row in batch])

    def credit(self, groups: list[list[Rollout]]) -> None:
        """Set each rollout's advantage: its reward less the mean of its question's."""
        for group, values in zip(groups, self.total_rewards(groups), strict=True):
            centred = torch.nan_to_num(values - torch.nanmean(values), nan=0.0)
            for rollout, advantage in zip(group, centred.tolist(), strict=True):
                rollout.advantage = advantage

    def taken(self, group: list[Rollout]) -> list[Rollout]:
        """The rollouts of a question that the update learns from."""
        return group

    def loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Loss of one micro-batch (`tensors` says what is in it), scaled so that micro-batches and ranks add up."""
        return super()._compute_loss(model, inputs)

    def micro_batches_per_step(self) -> int:
        """Of each rank, in every optimizer step."""
        return rollout_accumulation(self.recipe, self.run.settings.sequences_per_device, self.ranks.count)

    def portions(self, rollouts: list[Rollout], rank: int) -> list[list[Rollout]]:
        """What each of a rank's micro-batches holds: equal parts, as TRL's losses take it for granted."""
        size = len(rollouts) // (self.ranks.count * self.accumulation)
        first = rank * self.accumulation
        return [rollouts[number * size : (number + 1) * size] for number in range(first, first + self.accumulation)]

    def counts(self, rollouts: list[Rollout]) -> dict[str, torch.Tensor]:
        """What the loss divides by, counted over all ranks; it goes with every micro-batch."""
        trained = sum(len(r.ids) for r in rollouts if self.learns(r))
        return {"num_items_in_batch": torch.tensor(trained, device=self.accelerator.device)}

    # ------------------------------------------------------------ writing

    def own(self, asks: list[Ask]) -> list[list[Rollout]]:
        """Completions by the current policy, a group for every ask.

        Random numbers follow from the run's seed, the question's position and the ask's tag alone.
        """
        prompts = [self.prompt(ask.row) if ask.prompt is None else ask.prompt for ask in asks]
        requests = [
            Request(prompt + ask.prefix, (self.run.seed, ask.position, *ask.tag), ask.samples, self.room(ask.prefix))
            for ask, prompt in zip(asks, prompts, strict=True)
        ]
        sampling: dict[str, Any] = {
            "temperature": self.recipe.temperature, "top_p": self.recipe.top_p, "top_k": self.recipe.top_k,
        }  # fmt: skip
        if self.servers:
            model = self.accelerator.unwrap_model(self.model)
            weights = full_weights(model, self.servers.dtype, self.ranks.first)  # a collective when they are sharded
            version = self.state.global_step
            found = self.servers.complete(requests, weights, version, **sampling) if self.ranks.first else None
            found = self.ranks.from_first(found)
        else:
            assert self.engine is not None
            with self.accelerator.autocast(), self.meter.phase(WRITTEN):
                found = self.ranks.everyone(self.engine.complete(self.ranks.share(requests), **sampling))
        groups = []
        for ask, prompt, completions in zip(asks, prompts, found, strict=True):
            group = []
            for sample, completion in enumerate(completions):
                ended = completion.end is not None
                ids = [*ask.prefix, *completion.ids, *([completion.end] if ended else [])]
                origin = MIXED if ask.prefix else OWN
                group.append(Rollout(ask.row, ask.position, sample, prompt, ids, ended, origin, len(ask.prefix)))
            groups.append(group)
        return groups

    def expert(self, position: int, row: int, sample: int) -> Rollout:
        """The trace of a question as a rollout, cut at the longest completion there may be."""
        ids = self.trace(row)
        cut = ids[: self.recipe.max_completion_tokens]
        return Rollout(row, position, sample, self.prompt(row), cut, len(cut) == len(ids), EXPERT, len(cut))

    def prompt(self, row: int) -> list[int]:
        """Token ids of a question's prompt, the last ones of one that is longer than the recipe allows."""
        if row not in self.prompts:
            self.prompts[row] = self.rendered(self.rows[row]["problem"])[-(self.recipe.max_prompt_tokens or 0) :]
        return self.prompts[row]

    def trace(self, row: int) -> list[int]:
        """Token ids of a question's trace after its prompt, EOS included."""
        item = self.rows[row]
        return self.rendered(item["problem"], item["trace"])[len(self.rendered(item["problem"])) :]

    def rendered(self, question: str, response: str | None = None) -> list[int]:
        return token_ids(self.processing_class, question, response, self.recipe.system_message)

    def room(self, prefix: list[int]) -> int:
        return self.recipe.max_completion_tokens - len(prefix)

    # ------------------------------------------------------------ rewards

    def score(self, groups: list[list[Rollout]]) -> None:
        """Grade every rollout without rewards: `accuracy`, `format` and, where it counts, `tag_count`. Each rank grades
        its share."""
        rollouts = [rollout for group in groups for rollout in group if not rollout.rewards]
        mine = self.ranks.share(rollouts)
        texts = self.texts(mine)
        right = rewards.accuracy(self.grader, [self.rows[rollout.row]["answer"] for rollout in mine], texts)
        tags = [tag_count(text) for text in texts]
        scores = self.ranks.everyone(list(zip(right, rewards.well_formed(self.grader, texts), tags, strict=True)))
        for rollout, found in zip(rollouts, scores, strict=True):
            rollout.rewards = {name: value for name, value in zip(REWARDS, found, strict=True) if name in self.weights}

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward that is given."""
        recipe = self.recipe
        weights = {"accuracy": recipe.accuracy_weight, "format": recipe.format_weight}
        return weights | ({"tag_count": recipe.tag_count_weight} if recipe.tag_count_weight else {})

    def texts(self, rollouts: list[Rollout]) -> list[str]:
        """What is graded: the completion, with the tag that the template itself opens the turn with."""
        if not rollouts:
            return []
        decoded = self.processing_class.batch_decode([self.said(r) for r in rollouts], skip_special_tokens=False)
        return [self.opening + text for text in decoded]

    def said(self, rollout: Rollout) -> list[int]:
        """A rollout's token ids up to the one that ended it. Special tokens within stay, so that they are seen."""
        if not rollout.ended:
            return rollout.ids
        end = self.processing_class.eos_token_id
        if rollout.origin == EXPERT and end in rollout.ids:  # some templates write a line break after it
            return rollout.ids[: len(rollout.ids) - 1 - rollout.ids[::-1].index(end)]
        return rollout.ids[:-1]

    def total_rewards(self, groups: list[list[Rollout]]) -> list[torch.Tensor]:
        """Weighted sums of each group's rewards, float32; NaN where none of them could be given."""
        weights = self.weights
        totals = []
        for group in groups:
            found = [[(weights[k], v) for k, v in r.rewards.items() if v is not None] for r in group]
            totals.append(torch.tensor([sum(w * v for w, v in row) if row else torch.nan for row in found]))
        return totals

    # ------------------------------------------------------------ from rollouts to micro-batches

    def get_train_dataloader(self) -> DataLoaderShard:
        """The number of each of this rank's micro-batches; what is in it is looked up."""
        numbers = range(self.recipe.steps * self.accumulation)
        return DataLoaderShard(
            numbers, batch_size=1, collate_fn=lambda found: {"number": torch.tensor(found)}, num_workers=0,
            device=self.accelerator.device,
        )  # fmt: skip

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        step, place = divmod(int(inputs["number"]), self.accumulation)
        if step % self.per_batch == 0 and place == 0:
            self.batch = self.make_batch(step)
        update = self.batch[step % self.per_batch % self.recipe.updates]
        if place == 0:
            self.measure(update.metrics)
        return update.micro_batches[place]

    def make_batch(self, step: int) -> list[Update]:
        """Write the rollouts that the steps from `step` on learn from."""
        first = step // self.per_batch * self.recipe.updates
        places = [
            [(self.starts[u] + i, row) for i, row in enumerate(self.asked[u])]
            for u in range(first, first + self.recipe.updates)
        ]
        groups = self.write([place for update in places for place in update])
        self.score(groups)
        self.credit(groups)
        updates, size = [], self.recipe.questions_per_step
        for number in range(self.recipe.updates):
            share = groups[number * size : (number + 1) * size]
            self.journal(share, step + number + 1)
            rollouts = [rollout for group in share for rollout in self.taken(group)]
            updates.append(Update(self.micro_batches(rollouts), self.metrics(share)))
        return updates

    def micro_batches(self, rollouts: list[Rollout]) -> list[dict[str, Any]]:
        """This rank's micro-batches of one update, as tensors."""
        counts, found = self.counts(rollouts), []
        for portion in self.portions(rollouts, self.ranks.rank):
            inputs = self.tensors(portion) | counts
            with torch.no_grad(), self.meter.phase(SCORED):
                if self.per_batch > 1:
                    inputs["old_per_token_logps"] = self.log_probabilities(self.model, inputs)
                if self.beta:
                    inputs["ref_per_token_logps"] = self.log_probabilities(self.ref_model, inputs)
            found.append(inputs)
        return found

    def learns(self, rollout: Rollout) -> bool:
        """Whether a rollout's tokens are in the loss."""
        return rollout.ended or not self.recipe.mask_truncated_completions

    def tensors(self, rollouts: list[Rollout]) -> dict[str, Any]:
        """A micro-batch: prompts padded on the left, completions on the right, masks, advantages (a row each)."""
        device, blank = self.accelerator.device, self.processing_class.pad_token_id
        prompts = [torch.tensor(r.prompt) for r in rollouts]
        completions = [torch.tensor(r.ids) for r in rollouts]
        masks = [torch.full((len(r.ids),), int(self.learns(r))) for r in rollouts]
        return {
            "prompt_ids": pad(prompts, blank, "left").to(device),
            "prompt_mask": pad([torch.ones_like(p) for p in prompts], 0, "left").to(device),
            "completion_ids": pad(completions, blank, "right").to(device),
            "completion_mask": pad(masks, 0, "right").to(device),
            "advantages": torch.tensor([r.advantage or 0.0 for r in rollouts], device=device),
        }

    def log_probabilities(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of the completions' tokens at the recipe's temperature, (sequences, tokens)."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        return self._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])[0]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self._tokens.append(sum(self.ranks.everyone([int(inputs["completion_mask"].sum())])))
        return self.loss(model, inputs)

    # ------------------------------------------------------------ what is written down

    def journal(self, groups: list[list[Rollout]], step: int) -> None:
        """Questions asked and rollouts, under the first step that learns from them."""
        if not self.ranks.first:
            return
        asked = [{"step": step, "position": g[0].position, "row": g[0].row, "uuid": self.rows[g[0].row]["uuid"]}
                 for g in groups]  # fmt: skip
        self.journals.questions.add(asked)
        rollouts = [rollout for group in groups for rollout in group]
        self.journals.rollouts.add(
            [
                {
                    "step": step,
                    "row": rollout.row,
                    "uuid": self.rows[rollout.row]["uuid"],
                    "sample": rollout.sample,
                    "origin": rollout.origin,
                    "prompt": self.rows[rollout.row]["problem"],
                    "completion": text,
                    "accuracy_reward": rollout.rewards["accuracy"],
                    "format_reward": rollout.rewards["format"],
                    "advantage": rollout.advantage,
                    "prompt_tokens": len(rollout.prompt),
                    "completion_ids": rollout.ids,
                    "completion_length": len(rollout.ids),
                    "prefix_length": rollout.prefix,
                }
                for rollout, text in zip(rollouts, self.texts(rollouts), strict=True)
            ]
        )

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        """What is logged of rollouts. Means over the completions the policy wrote: rewards, lengths, share cut off."""
        written = [rollout for group in groups for rollout in group if rollout.origin != EXPERT]
        totals = torch.cat(self.total_rewards(groups))[[r.origin != EXPERT for group in groups for r in group]]
        metrics = {"reward": torch.nanmean(totals).item() if len(totals) else float("nan")}
        for name in self.weights:
            values = cast("list[float]", [r.rewards[name] for r in written if r.rewards.get(name) is not None])
            metrics[f"rewards/{name}"] = sum(values) / len(values) if values else float("nan")
        if written:
            metrics["completions/length"] = sum(len(r.ids) for r in written) / len(written)
            metrics["completions/truncated"] = sum(not r.ended for r in written) / len(written)
        return metrics

    def measure(self, values: dict[str, float]) -> None:
        """Log values of this step; NaN for what there is none of."""
        for name, value in values.items():
            self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mean_by_tokens(self._metrics["train"], MEANS, self._tokens)
        self._tokens = []
        super().log(logs, start_time)
        self.after_log(logs)

    # ------------------------------------------------------------ resuming

    def save_more(self, directory: Path) -> None:
        """The batch of rollouts when steps are still to be made of it."""
        if self.state.global_step % self.per_batch == 0:
            return
        tensors: dict[str, torch.Tensor] = {}
        kept = []
        for number, update in enumerate(self.batch):
            for place, inputs in enumerate(update.micro_batches):
                tensors |= {f"{number}.{place}.{name}": value.clone() for name, value in inputs.items()}
            kept.append({"micro_batches": len(update.micro_batches), "metrics": update.metrics})
        directory.mkdir(parents=True, exist_ok=True)
        name = BUFFER.format(rank=self.ranks.rank)
        save_file(tensors, directory / f"{name}.safetensors")
        (directory / f"{name}.json").write_text(json.dumps(kept))

    def load_more(self, directory: Path) -> None:
        name = BUFFER.format(rank=self.ranks.rank)
        if not (directory / f"{name}.json").is_file():
            return
        tensors = load_file(directory / f"{name}.safetensors")
        kept = json.loads((directory / f"{name}.json").read_text())
        self.batch = [Update([{} for _ in range(item["micro_batches"])], item["metrics"]) for item in kept]
        for key, tensor in tensors.items():
            number, place, what = key.split(".", 2)
            self.batch[int(number)].micro_batches[int(place)][what] = tensor.to(self.accelerator.device)


def arguments(
    run: TrainingRun, steps: int, accumulation: int, config: dict[str, Any], gpu: bool | None = None
) -> dict[str, Any]:
    """Of TRL's GRPOConfig. config: the method's own; gpu: as in `common_arguments`."""
    recipe, settings = run.recipe, run.settings
    sequences = recipe.questions_per_step * recipe.generations
    return common_arguments(run, steps, gpu) | {
        "per_device_train_batch_size": sequences // (accumulation * settings.ranks * settings.nodes),
        "gradient_accumulation_steps": accumulation,
        "num_generations": recipe.generations,
        "max_completion_length": recipe.max_completion_tokens,
        "temperature": recipe.temperature,
        "top_p": recipe.top_p,
        "top_k": recipe.top_k or 0,
        "disable_dropout": recipe.disable_dropout,
        "use_vllm": False,  # completions are written by scalpel/inference
        **config,
    }


def trl_rollout_config(run: TrainingRun, steps: int, config: dict[str, Any], gpu: bool) -> tuple[type, dict[str, Any]]:
    """TRL's class and its arguments. config: the method's own."""
    settings = run.settings
    accumulation = rollout_accumulation(run.recipe, settings.sequences_per_device, settings.ranks * settings.nodes)
    return GRPOConfig, arguments(run, steps, accumulation, config, gpu)


def _unused(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise AssertionError("rewards are given in RolloutTrainer.score")


def schedule(recipe: RolloutRecipe, questions: Questions) -> list[list[int]]:
    """Rows that each optimizer step's share of rollouts asks; each batch of rollouts holds `updates` shares."""
    batches = -(-recipe.steps // (recipe.updates * recipe.iterations))
    return by_count(questions.ordered, recipe.questions_per_step, batches * recipe.updates)


def check_room(
    model: Any, tokenizer: Any, rows: dict[int, dict], steps: list[list[int]], recipe: RolloutRecipe
) -> None:
    """UserError when the longest prompt and completion exceed the model's positions."""
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max(rows[row]["prompt_tokens"] for step in steps for row in step)
    if recipe.system_message is not None:  # at most so much is added
        longest += len(tokenizer(recipe.system_message, add_special_tokens=False)["input_ids"])
    longest = min(longest, recipe.max_prompt_tokens or longest)
    if room and longest + recipe.max_completion_tokens > room:
        raise UserError(
            f"a prompt of {longest} tokens and {recipe.max_completion_tokens} completion tokens exceed the model's "
            f"{room} positions; set filter.max_prompt_tokens to {room - recipe.max_completion_tokens} or less."
        )


class Parts(NamedTuple):
    """What a method is made of, and what the audit probes.

    config: arguments of GRPOConfig that it adds. normaliser: what its loss is summed over, by TRL's name of a loss
    type; None for a loss of another form.
    """

    trainer: type[RolloutTrainer]
    config: dict[str, Any]
    normaliser: str | None = None


def train_rollouts(run: TrainingRun, trainer: type[RolloutTrainer], config: dict[str, Any]) -> None:
    """Carry out a run of a method that learns from rollouts."""
    recipe, settings = run.recipe, run.settings
    check_writers(recipe, settings)
    make_deterministic(run.seed, settings.threads)
    questions = read_questions(run.kept, run.order)
    steps = schedule(recipe, questions)
    saved_at = checkpoint_steps(recipe.steps, recipe.checkpoints)
    tokenizer = load_tokenizer(run.base)
    tokenizer.padding_side = "left"
    model = load_model(run.start, training_dtype(recipe, settings))
    freeze(model, run.trainable)
    check_room(model, tokenizer, questions.rows, steps, recipe)
    journals = Journals.of(run.out)
    saving = Saving(run, saved_at, list(journals))
    with Grader(recipe.answer_rule) as grader:
        made = trainer(run, questions, steps, model, tokenizer, grader, journals, saving, config)
        log = carry_out(made, saving, run, made.columns)
    if log is not None:
        for name, journal in journals._asdict().items():
            if name != "demonstrations" or journal.path.stat().st_size:
                journal.write_parquet(run.out / f"{name}.parquet")
        write_log(log, spent(recipe, journals, model, len(log)), run.out)


def spent(recipe: RolloutRecipe, journals: Journals, model: Any, steps: int) -> list[dict]:
    """What each step cost: questions first asked in it, tokens trained on, tokens written, FLOPs."""
    per_batch = recipe.updates * recipe.iterations
    found = [dict.fromkeys(("tokens", "written", "read"), 0) for _ in range(steps)]
    asked: list[set] = [set() for _ in range(steps)]
    read: set[tuple[int, int, int]] = set()  # step, row, tokens: samples of one prompt share its pass
    for rollout in journals.rollouts.rows():
        first = rollout["step"] - 1
        length = rollout["completion_length"] + rollout["prompt_tokens"]
        if rollout["advantage"] is not None or rollout["origin"] == EXPERT:
            for step in range(first, min(first // per_batch * per_batch + per_batch, steps), recipe.updates):
                found[step]["tokens"] += length
        if first < steps:
            found[first]["written"] += rollout["completion_length"] - rollout["prefix_length"]
            prompt = rollout["prompt_tokens"] + rollout["prefix_length"]
            if rollout["origin"] != EXPERT and (first, rollout["row"], prompt) not in read:
                read.add((first, rollout["row"], prompt))
                found[first]["read"] += prompt
            asked[first].add(rollout["row"])
    for demonstration in journals.demonstrations.rows():
        found[demonstration["step"] - 1]["tokens"] += demonstration["tokens"]
    return [
        {"questions": len(rows), "tokens": f["tokens"], "written": f["written"],
         "flops": step_flops(model, f["tokens"], f["written"], f["read"])}
        for rows, f in zip(asked, found, strict=True)
    ]  # fmt: skip
