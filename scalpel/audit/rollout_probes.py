"""Probes of a method that learns from its own completions, on the very trainer class that runs use.

* normaliser: one SGD step of rate 1 on rollouts with known rewards, credited by the method. At ratio 1 the gradient is
  that of sum(-A log p) over *something*: the referee says over what, whatever the recipe calls it. A method that learns
  from traces, too, is compared with its whole formula (scalpel/audit/formulas.py): weights, advantages, likelihoods.
* clip norm: the same step with half the gradient's norm as `max_grad_norm`; the step's own norm is what acted.
* log-probabilities: those that an inference engine gives its completions against the trainer's of the same tokens.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from scalpel.audit.chat_probe import ROW
from scalpel.audit.formulas import BRANCHES, FORMULAS, Referee, asked_for, candidates, gradient_of, loss_of
from scalpel.audit.probes import Probe, tiny_model
from scalpel.audit.referee import TOLERANCE, Example, negative_log_likelihood
from scalpel.chat import load_tokenizer, template_text
from scalpel.config.training import Trainable, TrainSettings
from scalpel.methods import METHODS
from scalpel.methods.loop import Saving, TrainingRun
from scalpel.methods.ranks import Ranks
from scalpel.methods.rollouts import EXPERT, MIXED, OWN, Ask, Journals, Rollout, RolloutTrainer
from scalpel.methods.schedule import Questions

NATS = {"transformers": 1e-4, "vllm": 1e-3}  # by which an engine's log-probabilities may differ from the trainer's
MOST = 24  # tokens of a completion
REASONING = ("2 + 3 = 5", "5", "3 = 5")  # of the questions' traces, in turn: unequal over micro-batches
OF_LOSS_TYPES = {  # GRPO's names for it
    "dr_grpo": "sequences x max_completion_tokens",
    "dapo": "tokens of the step",
    "grpo": "tokens of each sequence, then sequences",
    "bnpo": "tokens of each micro-batch, then micro-batches",
}


class Credited(NamedTuple):
    """One rollout as the step took it. example: the prompt's ids and its own."""

    example: Example
    advantage: float
    learnt: bool


Shares = list[list[list[Credited]]]  # by rank, micro-batch and sequence

# ---------------------------------------------------------------- the referee's side


def normalisers(most: int) -> dict[str, Callable[[Shares], list[float]]]:
    """What each sequence's token sum is divided by, by name. Sequences in the order of rank and micro-batch."""

    def tokens(one: Credited) -> int:
        return len(one.example.ids) - one.example.prompt if one.learnt else 0

    def count(shares: Shares) -> int:
        return sum(len(batch) for rank in shares for batch in rank)

    def each(shares: Shares, divisor: Callable[[list[Credited], Credited], float]) -> list[float]:
        return [divisor(batch, one) for rank in shares for batch in rank for one in batch]

    def batches(shares: Shares) -> int:
        return sum(len(rank) for rank in shares)

    return {
        OF_LOSS_TYPES["dr_grpo"]: lambda s: each(s, lambda batch, one: count(s) * most),
        OF_LOSS_TYPES["dapo"]: lambda s: each(s, lambda batch, one: sum(tokens(o) for r in s for b in r for o in b)),
        OF_LOSS_TYPES["grpo"]: lambda s: each(s, lambda batch, one: count(s) * max(tokens(one), 1)),
        OF_LOSS_TYPES["bnpo"]: lambda s: each(s, lambda batch, one: batches(s) * max(sum(map(tokens, batch)), 1)),
        "tokens of each rank, then ranks": lambda s: [
            len(s) * max(sum(tokens(o) for b in rank for o in b), 1) for rank in s for batch in rank for _ in batch
        ],
    }


class Normaliser(NamedTuple):
    """name: over what the loss is summed. scale: the gradient is so many times that one's. difference: relative."""

    name: str
    scale: float
    difference: float


def classify(
    step: dict[str, torch.Tensor], model: Any, shares: Shares, most: int, temperature: float
) -> list[Normaliser]:
    """Every known normaliser and how near the step is to its gradient times the best factor; the nearest first."""
    losses = [
        one.advantage * one.learnt * negative_log_likelihood(
            model, one.example, one.example.prompt, len(one.example.ids), temperature
        )
        for rank in shares for batch in rank for one in batch
    ]  # fmt: skip
    names = [name for name, _ in model.named_parameters()]
    taken = torch.cat([step[name].double().flatten() for name in names])
    found = []
    for name, divisors in normalisers(most).items():
        loss = sum(loss / divisor for loss, divisor in zip(losses, divisors(shares), strict=True))
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        gradient = torch.cat([g.double().flatten() for g in gradients])
        scale = float(taken @ gradient / (gradient @ gradient))
        found.append(Normaliser(name, scale, float((taken - scale * gradient).norm() / taken.norm())))
    return sorted(found, key=lambda one: one.difference)


# ---------------------------------------------------------------- the trainer's side


def model_of(method: str, vocabulary: int) -> Any:
    """tiny_model; of a method with a formula with ten times its logits, so that entropies differ and have a gradient.

    Some methods learn from the tokens of the highest entropy alone: near ties would be broken by rounding.
    """
    model = tiny_model(vocabulary)
    if method in FORMULAS:
        with torch.no_grad():
            model.lm_head.weight.mul_(10.0)
    return model


def tokenizer_in(folder: Path, template: str) -> Any:
    """A tokenizer of a few words with a named template, saved and loaded as a model's is."""
    from scalpel.toy.model import train_tokenizer

    made = train_tokenizer([ROW["problem"], ROW["trace"]] * 20, 400, cast("str", template_text(template)))
    made.save_pretrained(folder)
    return load_tokenizer(folder)


@contextmanager
def trainer_of(
    asked: dict, settings: TrainSettings, accumulation: int, max_grad_norm: float
) -> Iterator[tuple[RolloutTrainer, list[list[Rollout]]]]:
    """The method's trainer on a tiny model, and an empty list that gets the groups it credits.

    asked: fields of the method's recipe that decide its loss. Its completions are made up, so that lengths are unequal
    over micro-batches and ranks, and one in four is cut off. Of every other question three in four are right, of the
    others none, so that a gate lets both kinds pass.
    """
    ranks = Ranks.here()
    questions = 2 * accumulation
    method = METHODS[asked["method"]]
    held: dict[str, float] = {"beta": 0.0} if "beta" in method.Recipe.model_fields else {}  # no gradient at the start
    samples = 4 * min(asked.get("per_question", 1), max(len(asked.get("templates", ())), 1))
    recipe = method.Recipe.model_validate(
        asked | held | {
            "learning_rate": 1.0, "schedule": "constant", "max_grad_norm": max_grad_norm, "checkpoints": 1, "steps": 1,
            "updates": 1, "iterations": 1, "weight_decay": 0.0,  # what is taken is the gradient alone
            "questions_per_step": questions, "generations": samples * ranks.count, "max_completion_tokens": MOST,
        }
    )  # fmt: skip
    parts = import_module(method.trainer).parts(recipe)
    credited: list[list[Rollout]] = []

    class Probed(parts.trainer):  # type: ignore[name-defined]
        def own(self, asks: list[Ask]) -> list[list[Rollout]]:
            """The method's own place for what the policy writes."""
            random, groups = np.random.default_rng(3), []
            for ask in asks:
                room = MOST - len(ask.prefix)
                lengths = random.integers(min(3, room), room + 1, ask.samples)
                ids = [[*ask.prefix, *random.integers(5, 200, length).tolist()] for length in lengths]
                prompt, origin = ask.prompt or self.prompt(ask.row), MIXED if ask.prefix else OWN
                groups.append(
                    [
                        Rollout(ask.row, ask.position, n, prompt, one, n % 4 != 2, origin, len(ask.prefix))
                        for n, one in enumerate(ids)
                    ]
                )
            return groups

        def score(self, groups: list[list[Rollout]]) -> None:
            for group in groups:
                for rollout in [rollout for rollout in group if not rollout.rewards]:
                    solved, wrong = rollout.row % 2 == 0, rollout.sample % 4 == 1
                    right = rollout.origin == EXPERT or (solved and not wrong)
                    rollout.rewards = {"accuracy": float(right), "format": float(solved and wrong)}

        def credit(self, groups: list[list[Rollout]]) -> None:
            super().credit(groups)
            credited.extend(groups)

    with tempfile.TemporaryDirectory(prefix="scalpel_") as name:
        folder = Path(name)
        tokenizer = tokenizer_in(folder, "scalpel_vs_hammer")
        tokenizer.padding_side = "left"
        rows = {}
        for row in range(questions):
            trace = ROW["trace"].replace(REASONING[0], REASONING[row % len(REASONING)])
            rows[row] = {**ROW, "uuid": str(row), "trace": trace}
        asked_rows = np.arange(questions)
        sequences = getattr(recipe, "most_sequences", questions * samples * ranks.count)
        size = -(-sequences // (ranks.count * accumulation))
        two = settings.model_copy(update={"sequences_per_device": size, "server": None})
        run = TrainingRun(recipe, folder, folder, folder, folder, 1, Trainable(), folder, two)
        journals = Journals.of(folder)
        saving = Saving(run, [10**9], list(journals))  # nothing is saved
        trainer = Probed(
            run, Questions(rows, asked_rows, asked_rows * 0), [asked_rows.tolist()],
            model_of(recipe.method, len(tokenizer)),
            tokenizer, None, journals, saving, parts.config,
        )  # fmt: skip
        saving.trainer = trainer
        trainer.args.optim = "sgd"
        if settings.engine == "zero2":
            trainer.accelerator.state.deepspeed_plugin.deepspeed_config |= {
                "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
            }  # fmt: skip
        yield trainer, credited


def take_step(trainer: RolloutTrainer) -> dict[str, torch.Tensor]:
    """Old less new value of every parameter after the trainer's one step; a collective of all ranks."""
    from transformers.trainer_callback import PrinterCallback

    from scalpel.inference.remote import full_weights

    before = {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    after = dict(full_weights(trainer.accelerator.unwrap_model(trainer.model)))
    return {name: before[name].cpu() - after[name].detach().float().cpu() for name in before}


def cut_of(trainer: RolloutTrainer, groups: list[list[Rollout]]) -> list[list[list[Rollout]]]:
    """The credited rollouts by rank and micro-batch, as the trainer cuts them."""
    rollouts = [rollout for group in groups for rollout in trainer.taken(group)]
    return [trainer.portions(rollouts, rank) for rank in range(trainer.ranks.count)]


def shares_of(trainer: RolloutTrainer, groups: list[list[Rollout]]) -> Shares:
    """The same, as the referee knows them."""

    def credited(r: Rollout) -> Credited:
        return Credited(Example(r.prompt + r.ids, len(r.prompt)), r.advantage or 0.0, trainer.learns(r))

    cut = cut_of(trainer, groups)
    return [[[credited(rollout) for rollout in portion] for portion in rank] for rank in cut]


# ---------------------------------------------------------------- the probes


def normaliser(asked: dict, settings: TrainSettings, accumulation: int) -> tuple[Probe, float]:
    """What the loss is summed over, and the norm of its gradient; a collective of all ranks.

    Where a method's first batch may take one of several branches, each is probed; the norm is that of the last.
    """
    verdicts, norm = [], 0.0
    for held in branches(asked):
        with trainer_of(asked | held, settings, accumulation, 1e9) as (trainer, groups):
            step = take_step(trainer)
            judged = of_formula if asked["method"] in FORMULAS else of_loss_type
            verdicts.append(judged(step, trainer, groups))
        norm = norm_of(step)
    passed, found, wanted = min(verdicts, key=lambda verdict: verdict[0])  # a wrong one, if there is one
    return Probe("normaliser", passed, found, wanted, f"relative {100 * TOLERANCE:.0e}"), norm


def branches(asked: dict) -> list[dict]:
    """Fields in place of those asked for, so that each branch of the method is taken once."""
    return BRANCHES.get(asked["method"], [{}])


def norm_of(step: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([g.double().flatten() for g in step.values()]).norm())


def normaliser_and_clip(asked: dict, settings: TrainSettings, accumulation: int) -> list[Probe]:
    """`normaliser`, and the norm at which that gradient is clipped; a collective of all ranks."""
    summed, norm = normaliser(asked, settings, accumulation)
    asks = norm / 2
    with trainer_of(asked | branches(asked)[-1], settings, accumulation, asks or 1.0) as (trainer, _):
        acted = norm_of(take_step(trainer))
    return [
        summed,
        Probe(
            "clip norm",
            norm > 0 and abs(acted / asks - 1) < 1e-4,
            f"a gradient of norm {norm:.4g} is clipped to {acted:.4g} where {asks:.4g} is asked for",
            f"{asks:.4g}",
            "relative 1e-04",
        ),
    ]


def of_loss_type(
    step: dict[str, torch.Tensor], trainer: RolloutTrainer, groups: list[list[Rollout]]
) -> tuple[bool, str, str]:
    """(whether it is right, what was found, what is right) of a method whose loss is one of TRL's types."""
    vocabulary, recipe = trainer.model.config.vocab_size, trainer.recipe
    named = import_module(METHODS[recipe.method].trainer).parts(recipe).normaliser
    if named not in OF_LOSS_TYPES:
        found = f"the audit has no formula of {recipe.method} to compare its step with; add it to audit/formulas.py"
        return False, found, "a formula"
    wanted = OF_LOSS_TYPES[named]
    nearest = classify(step, tiny_model(vocabulary), shares_of(trainer, groups), MOST, recipe.temperature)[0]
    known = nearest.difference < 100 * TOLERANCE
    right = known and nearest.name == wanted and abs(nearest.scale - 1) < 100 * TOLERANCE
    found = f"{nearest.name}{times(nearest.scale)}" if known else none_known(nearest.difference)
    return right, f"the loss is summed over: {found}; its recipe asks for {wanted}", wanted


def of_formula(
    step: dict[str, torch.Tensor], trainer: RolloutTrainer, groups: list[list[Rollout]]
) -> tuple[bool, str, str]:
    """The same of a method that learns from traces, too: the step against the gradient of its whole formula."""
    recipe: Any = trainer.recipe
    model = model_of(recipe.method, trainer.model.config.vocab_size).double()
    objective = FORMULAS[recipe.method](Referee(recipe, model, groups))
    cut, found = cut_of(trainer, groups), []
    for policy, likelihood in candidates(recipe):  # the right one first
        gradient = gradient_of(model, loss_of(objective, recipe, cut, policy, likelihood))
        scale, difference = near(step, gradient)
        direction, size = difference < 100 * TOLERANCE, abs(scale - 1) < 100 * TOLERANCE
        found.append(((not direction, not size, difference), scale, policy, likelihood))
        if direction and size:
            break
    (_, _, difference), scale, policy, likelihood = min(found, key=lambda one: one[0])
    wanted = sentence(*asked_for(recipe))
    known = difference < 100 * TOLERANCE
    right = known and (policy, likelihood) == asked_for(recipe) and abs(scale - 1) < 100 * TOLERANCE
    said = f"{sentence(policy, likelihood)}{times(scale)}" if known else none_known(difference)
    return right, f"{recipe.method}'s loss is summed over: {said}; its recipe asks for {wanted}", wanted


def near(step: dict[str, torch.Tensor], gradient: dict[str, torch.Tensor]) -> tuple[float, float]:
    """How many times a gradient the step is, and the relative difference that is left."""
    taken, wanted = (torch.cat([one[name].double().flatten() for name in gradient]) for one in (step, gradient))
    if not taken.norm() or not wanted.norm():
        return 0.0, math.inf
    scale = float(taken @ wanted / (wanted @ wanted))
    return scale, float((taken - scale * wanted).norm() / taken.norm())


def sentence(policy: str, likelihood: str) -> str:
    return f"{policy} (policy terms), {likelihood} (likelihood terms)"


def times(scale: float) -> str:
    return "" if abs(scale - 1) < 100 * TOLERANCE else f", times {scale:.6g}"


def none_known(difference: float) -> str:
    return f"none that is known (nearest differs by {difference:.2g})"


ENGINE = """
import json, sys
from pathlib import Path
from scalpel.inference import EngineSettings, open_engine
from scalpel.inference.requests import Request
kind, model, asked = sys.argv[1:]
asked = json.loads(asked)
engine = open_engine(kind, Path(model), EngineSettings(memory_fraction=0.2, dtype="float32"))
requests = [Request(prompt, (5, n), 3, 16) for n, prompt in enumerate(asked["prompts"])]
print("FOUND " + json.dumps(engine.complete(requests, asked["temperature"], 1.0, True)))
"""


def log_probabilities(kind: str, asked: dict, settings: TrainSettings) -> Probe:
    """Of an engine's completions, given by it and by the trainer; the engine runs in a process of its own."""
    if find_spec(kind) is None:
        return Probe(f"log-probabilities of {kind}", False, f"{kind} is not installed here, and the runs ask for it")
    with trainer_of(asked, settings, 1, 1.0) as (trainer, _), tempfile.TemporaryDirectory(prefix="scalpel_") as name:
        prompt = trainer.prompt(0)
        prompts = [prompt, prompt[:-3], [*prompt, 9, 8, 7]]
        trainer.model.save_pretrained(name)
        trainer.processing_class.save_pretrained(name)
        request = json.dumps({"prompts": prompts, "temperature": trainer.recipe.temperature})
        done = subprocess.run([sys.executable, "-c", ENGINE, kind, name, request], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        if done.returncode or not lines:
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            return Probe(f"log-probabilities of {kind}", False, f"{kind} does not run: {said}")
        worst, count = 0.0, 0
        for ids, group in zip(prompts, json.loads(lines[-1].removeprefix("FOUND ")), strict=True):
            for written, end, given in group:
                whole = [*written, *([] if end is None else [end])]
                inputs = trainer.tensors([Rollout(0, 0, 0, ids, whole, True)])
                with torch.no_grad():
                    theirs = trainer.log_probabilities(trainer.model, inputs)[0].float().cpu()
                worst = max(worst, float((theirs - torch.tensor(given)).abs().max()))
                count += len(whole)
    return Probe(
        f"log-probabilities of {kind}",
        worst <= NATS[kind],
        f"they differ from the trainer's by {worst:.1e} nats at most over {count} tokens; {NATS[kind]:.0e} are allowed",
        "the trainer's of the same tokens",
        f"{NATS[kind]:.0e} nats",
    )


ALONE = """
import json, sys
from scalpel.audit.rollout_probes import log_probabilities
from scalpel.config.training import TrainSettings
kind, asked = sys.argv[1:]
print("PROBE " + json.dumps(log_probabilities(kind, json.loads(asked), TrainSettings())))
"""
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def alone(kind: str, asked: dict) -> Probe:
    """`log_probabilities` in a process that is no rank: the trainer's own do not depend on how ranks share the work."""
    clean = {k: v for k, v in os.environ.items() if k not in OF_RANKS and not k.startswith("ACCELERATE_")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, kind, json.dumps(asked)], env=clean, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE ")]
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return Probe(f"log-probabilities of {kind}", False, f"they cannot be compared: {said}")
    return Probe(*json.loads(lines[-1].removeprefix("PROBE ")))


def rollout_probes(asked: dict, settings: TrainSettings, accumulation: int) -> list[Probe]:
    """All of them; a collective of all ranks. asked: as `trainer_of`, with `inference`."""
    found = normaliser_and_clip(asked, settings, accumulation)
    if Ranks.here().first:
        kind = asked["inference"]
        found.append(log_probabilities(kind, asked, settings) if Ranks.here().count == 1 else alone(kind, asked))
    return found
