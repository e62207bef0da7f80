"""Probes of the likelihood trainer: one SGD step of rate 1 on unequal micro-batches, compared with the referee's.

The step is taken by the very class that trains (scalpel/methods/likelihood.py), with the engine, offload, ranks and
accumulation of the runs that wait. Every micro-batch holds a token that stands in no other, so that its row of the
embeddings says whether the micro-batch reached the optimizer.
"""

from __future__ import annotations

import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scalpel.artifact.files import write_atomically
from scalpel.audit.known import FIXES, LOST, OF_PROBES, STEP, VERSIONS
from scalpel.audit.referee import TOLERANCE, Batches, Example, classify
from scalpel.config.training import TrainSettings
from scalpel.errors import UserError
from scalpel.methods.faults import Weight
from scalpel.methods.ranks import Ranks

LENGTHS = (3, 40, 7, 25, 11, 60, 5, 30)  # tokens of the answers, in turn: unequal over ranks and micro-batches
PROMPTS = (4, 9, 6)  # tokens of the prompts, in turn
WORDS = 40  # ordinary tokens; the markers follow, then EOS
RIGHT = "token mean"
PRECISION = {  # by where the step is taken: how far it may be from the referee's, relative, float32
    "cpu": TOLERANCE,  # every engine is within 6e-7 (tests/test_audit.py)
    "cuda": 10 * TOLERANCE,  # other kernels than the referee's, which stays on the CPU
}


class Probe(NamedTuple):
    """One thing that was checked: what was found, what is right, and by how much the two may differ."""

    name: str
    passed: bool
    found: str
    expected: str = ""
    tolerance: str = ""


def examples(ranks: int, accumulation: int) -> Batches:
    """Sequences by rank and micro-batch; each micro-batch has one or two and a marker of its own."""
    generator = torch.Generator().manual_seed(0)
    count = ranks * accumulation
    end = WORDS + count
    batches: Batches = [[[] for _ in range(accumulation)] for _ in range(ranks)]
    number = 0
    for micro in range(accumulation):
        for rank in range(ranks):
            for _ in range(1 + (micro + rank) % 2):
                prompt, answer = PROMPTS[number % len(PROMPTS)], LENGTHS[number % len(LENGTHS)]
                words = torch.randint(0, WORDS, (prompt + answer - 2,), generator=generator).tolist()
                ids = [WORDS + micro * ranks + rank, *words, end]
                batches[rank][micro].append(Example(ids, prompt))
                number += 1
    return batches


def tiny_model(vocabulary: int) -> Any:
    """A random Olmo2 of two layers, the same on every rank; vLLM's float32 attention on GPUs takes heads of 32 up."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=0, eos_token_id=vocabulary - 1,
        pad_token_id=0,
    )  # fmt: skip
    return Olmo2ForCausalLM(config).float()


def take_step(
    batches: Batches, settings: TrainSettings, folder: Path, weights: list[Weight] | None = None
) -> dict[str, torch.Tensor]:
    """Old less new value of every parameter after one step of the trainer; a collective of all ranks.

    weights: of the tokens of each sequence, micro-batch after micro-batch and of each rank after rank.
    """
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig

    from scalpel.inference.remote import full_weights
    from scalpel.methods.likelihood import LikelihoodTrainer
    from scalpel.methods.loop import engine_arguments
    from scalpel.methods.sft import SFTRecipe
    from scalpel.methods.state import QUESTIONS, Journal

    accumulation, ranks = len(batches[0]), len(batches)
    order = [(rank, micro) for micro in range(accumulation) for rank in range(ranks)]
    sequences = [example for rank, micro in order for example in batches[rank][micro]]
    places, start = [], 0
    for rank, micro in order:
        places.append(list(range(start, start + len(batches[rank][micro]))))
        start += len(batches[rank][micro])
    model = tiny_model(max(max(e.ids) for e in sequences) + 1)
    recipe = SFTRecipe(learning_rate=1.0, epochs=1, schedule="constant", max_grad_norm=1e9)
    arguments = engine_arguments(recipe, settings)
    if settings.engine == "zero2":  # SGD is what shows a lost micro-batch: Adam hides the size of a gradient
        arguments["deepspeed"] |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
        arguments["deepspeed"]["gradient_clipping"] = 0.0
    trainer = LikelihoodTrainer(
        model=model,
        args=SFTConfig(
            **arguments, output_dir=str(folder), max_steps=1, learning_rate=1.0, lr_scheduler_type="constant",
            optim="sgd", max_grad_norm=0.0, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
            max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True}, report_to="none",
            save_strategy="no", bf16=False, disable_tqdm=True, remove_unused_columns=False, weight_decay=0.0,
            average_tokens_across_devices=True, gradient_checkpointing=settings.gradient_checkpointing,
        ),
        train_dataset=Dataset.from_dict(
            {"row": list(range(len(sequences))), "input_ids": [e.ids for e in sequences],
             "trained_from": [e.prompt for e in sequences]}
        ),
        processing_class=_tokenizer(PreTrainedTokenizerFast, model.config.vocab_size),
        schedule=list(range(len(sequences))),
        micro_batches=places,
        uuids={row: "" for row in range(len(sequences))},
        journal=Journal(folder / "asked.jsonl", QUESTIONS),
        weights=weights,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    before = {name: tensor.detach().clone() for name, tensor in tiny_model(model.config.vocab_size).named_parameters()}
    trainer.train()
    after = dict(full_weights(trainer.accelerator.unwrap_model(trainer.model)))
    return {name: before[name] - after[name].detach().float().cpu() for name in before}


def _tokenizer(kind: Any, vocabulary: int) -> Any:
    """A tokenizer of as many words as the model has ids; the trainer asks it for its padding alone.

    Padding is EOS, as many models' is: a trainer that masks by the padding's id would leave EOS out of the loss.
    """
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return kind(
        tokenizer_object=made, bos_token="w0", **dict.fromkeys(("pad_token", "eos_token"), f"w{vocabulary - 1}")
    )


def probe(settings: TrainSettings, accumulation: int) -> list[Probe]:
    """Take the step and judge it; a collective of all ranks."""
    ranks = Ranks.here()
    batches = examples(ranks.count, accumulation)
    with tempfile.TemporaryDirectory(prefix="scalpel_") as folder:
        step = take_step(batches, settings, Path(folder))
    model = tiny_model(step["model.embed_tokens.weight"].shape[0])
    verdict = classify(step, model, batches)
    rows = step["model.embed_tokens.weight"]
    marks = [(rank, micro) for micro in range(accumulation) for rank in range(ranks.count)]
    lost = [f"{micro} of rank {rank}" for i, (rank, micro) in enumerate(marks) if not rows[WORDS + i].abs().max() > 0]
    right = verdict.name == RIGHT
    named = verdict.name or f"none that is known (nearest differs by {verdict.difference:.2g})"
    masked = not any(word in named for word in ("prompt", "EOS"))
    lost_ones = f"micro-batches that do not reach the optimizer: {', '.join(lost) or 'none'}"
    gradient, bound = f"the gradient is that of: {named}", PRECISION["cuda" if torch.cuda.is_available() else "cpu"]
    near = f"relative {100 * TOLERANCE:.0e}"  # of the nearest known objective
    whole = f"all {accumulation} of each of {ranks.count} ranks"
    precise, relative = verdict.from_right <= bound or not right, f"relative {bound:.0e}"
    return [
        Probe("accumulation", not lost, lost_ones, whole, "none"),
        Probe("aggregation", right or not masked, gradient, f"the {RIGHT} over all ranks and micro-batches", near),
        Probe("masking", masked, gradient, "EOS in the loss, the prompt out of it", near),
        Probe("precision", precise, f"relative difference {verdict.from_right:.1e}", "the referee's step", relative),
    ]


def audit(settings: TrainSettings, fingerprint: dict, base: Path, out: Path) -> None:
    """Run the probes and write out/audit.json; UserError naming the probe that failed and what is known of it.

    base: the directory of the model that the runs start from; its tokenizer and template are probed.
    """
    probes = probe(settings, fingerprint["accumulation"])
    if Ranks.here().first:
        from scalpel.audit.chat_probe import chat_template

        probes.append(chat_template(base))
    if asked := fingerprint.get("rollouts"):
        from scalpel.audit.rollout_probes import rollout_probes

        probes += rollout_probes(asked, settings, fingerprint["accumulation"])
    if not Ranks.here().first:
        return
    write_atomically(out / "audit.json", json.dumps([p._asdict() for p in probes], indent=1) + "\n")
    failed = [p for p in probes if not p.passed]
    if failed:
        raise UserError(
            f"the installed stack fails the audit's probe of {failed[0].name}: {failed[0].found}.{known(failed[0])} "
            "Nothing is trained with it."
        )


def known(failed: Probe) -> str:
    """What is known of a wrong objective: the version that has it and the one that does not, and what is installed.

    Where the objective itself is none that is known, what the probe is there for, and the packages that take the step.
    """
    for names, (package, words) in FIXES.items():
        if any(name in failed.found for name in names) or (failed.name == "accumulation" and names is LOST):
            return f" Installed is {installed(package)}; {words}."
    packages = next((named for name, named in OF_PROBES.items() if failed.name.startswith(name)), STEP)
    on_record = f"on record: {VERSIONS[failed.name]}" if failed.name in VERSIONS else ""
    verb = "is" if len(packages) == 1 else "are"
    here = " and ".join(map(installed, packages))
    return f" Installed {verb} {here}; {on_record or 'no version that does so is known here'}."


def installed(package: str) -> str:
    """A package with its version."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"
