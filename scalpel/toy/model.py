"""The toy base model: a byte-level BPE tokenizer and a small Olmo2ForCausalLM, trained from nothing.

The tokenizer splits digits singly, as OLMo-2's does. Its role, think and answer tags are added tokens that
are *not* special: TRL decodes completions without special tokens, and tags that vanish earn no reward. The
constant system prompt is one added token, so that the toy's short context is not spent on it.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel import progress
from scalpel.artifact.files import STATE, to_disk, write_atomically
from scalpel.base_model import edit_config
from scalpel.chat import SYSTEM_PROMPT, check_template, render
from scalpel.config.models import ToyModelRecipe
from scalpel.errors import UserError
from scalpel.methods.state import COMPLETE, file_digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SAVE_SECONDS = 20.0  # between two states
END, PAD = "<|endoftext|>", "<|pad|>"
TAGS = ("<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>", "<answer>", "</answer>")


def train_tokenizer(texts: Iterable[str], vocab_size: int, template: str) -> PreTrainedTokenizerFast:
    """A PreTrainedTokenizerFast with this chat template; `vocab_size` counts the added tokens too."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = (*TAGS, SYSTEM_PROMPT)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = template
    check_template(fast, "models.<name>.chat_template")
    return fast


def train_base(
    recipe: ToyModelRecipe, world: Path, out: Path, threads: int, template: str | None, edits: dict | None = None
) -> None:
    """Write out/model/ and out/pretraining_log.parquet (step, loss, learning_rate).

    template: Jinja text of the chat template. edits: fields of config.json changed after training.
    Bitwise repeatable for a given number of threads, interrupted or not: every SAVE_SECONDS the state is saved under
    out/state/, and a later call resumes from it.
    """
    if template is None:
        raise UserError("a toy model has no chat template of its own; name one in `models.<name>.chat_template`.")
    import numpy as np
    import torch
    from transformers import GenerationConfig, Olmo2Config, Olmo2ForCausalLM

    torch.set_num_threads(threads)
    stream = pq.read_table(world / "pretraining.parquet").to_pylist()
    if not stream:
        raise UserError(f"{world / 'pretraining.parquet'} is empty; raise world.pretraining_samples.")
    parts = [part for row in stream for part in (row["question"], row["text"]) if part]
    tokenizer = train_tokenizer(parts, recipe.vocab_size, template)
    texts = [_text(tokenizer, row) for row in stream]
    documents = [
        encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]

    config = Olmo2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.max_position,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    model = Olmo2ForCausalLM(config).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, recipe.steps // 20)
    state = State(out / STATE, model, optimizer)
    log = state.resume()
    first = len(log)
    started = last = saved = time.monotonic()
    for step, batch in enumerate(_batches(documents, recipe), start=1):
        if step <= first:
            continue
        rate = recipe.learning_rate * min(step / warmup, 1 - (step - 1) / recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = torch.from_numpy(np.asarray(batch))
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        log.append({"step": step, "loss": loss.item(), "learning_rate": rate})
        if time.monotonic() - last >= 5 or step == recipe.steps:
            progress.line("base model: step", step, recipe.steps, started, f", loss {loss.item():.3f}")
            last = time.monotonic()
        if time.monotonic() - saved >= SAVE_SECONDS and step < recipe.steps:
            state.save(log)
            saved = time.monotonic()
    model.generation_config = GenerationConfig(
        do_sample=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.eval().save_pretrained(out / "model")
    edit_config(out / "model", edits or {})
    tokenizer.save_pretrained(out / "model")
    pq.write_table(pa.Table.from_pylist(log), out / "pretraining_log.parquet", compression="zstd")


class State:
    """What an interrupted training of the toy resumes from: weights, Adam's moments and the log, whole or not there.

    The order of the texts follows from the recipe's seed and the step, and nothing else is random.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer):
        self.folder, self.model, self.optimizer = folder, model, optimizer

    def save(self, log: list[dict]) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in moments.items()}
        path = self.folder / f"step-{len(log):06d}.safetensors"
        save_file(tensors, path)
        to_disk([path])
        write_atomically(self.folder / COMPLETE, json.dumps({"file": path.name, "of": file_digest(path), "log": log}))
        for other in self.folder.glob("step-*"):
            if other != path:
                other.unlink()

    def resume(self) -> list[dict]:
        """Put back what was saved last; the log until then, empty when nothing whole is there."""
        from safetensors.torch import load_file

        try:
            complete = json.loads((self.folder / COMPLETE).read_text())
            path = self.folder / complete["file"]
            if file_digest(path) != complete["of"]:
                raise ValueError(f"{path} is damaged")
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{self.folder} is incomplete or damaged ({error}): starting over", file=sys.stderr, flush=True)
            return []
        moments: dict[int, dict[str, torch.Tensor]]
        tensors, moments = load_file(path), {}
        weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        for key, tensor in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                moments.setdefault(int(index), {})[name] = tensor
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        print(f"resuming from step {len(complete['log'])}", file=sys.stderr, flush=True)
        return complete["log"]


def _text(tokenizer: PreTrainedTokenizerBase, row: dict) -> str:
    if row["question"] is None:
        return END + row["text"] + END
    return render(tokenizer, row["question"], row["text"])


def _batches(documents: list[list[int]], recipe: ToyModelRecipe) -> Iterator[list[list[int]]]:
    """`steps` batches of packed documents, (batch_size, sequence_length + 1) token ids; seeded order."""
    rng = random.Random(recipe.seed)
    length = recipe.sequence_length + 1
    buffer: list[int] = []

    def sequences() -> Iterator[list[int]]:
        while True:
            for index in rng.sample(range(len(documents)), len(documents)):
                buffer.extend(documents[index])
                while len(buffer) >= length:
                    yield buffer[:length]
                    del buffer[: length - 1]

    source = sequences()
    for _ in range(recipe.steps):
        yield [next(source) for _ in range(recipe.batch_size)]
