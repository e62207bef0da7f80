"""The model that both harnesses drive: one transformers model whose weights change from checkpoint to checkpoint.

Prompts are made by LightEval's own PromptManager with the tokenizer's chat template; no system message is
given, the template supplies the system prompt. Prompts are never cut: a prompt that leaves no room for its
new tokens is answered all the same and counted in `beyond_positions`.

Speed comes from not computing things twice: what all prompts of a batch begin with (the system prompt, the
few-shot examples) goes through the model once, choices that differ in their last token share one pass, and
completions that have ended leave the batch. Every completion has its own random numbers, so neither the
batch size nor the other questions decide what is sampled.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from scalpel.chat import load_tokenizer
from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings
from scalpel.errors import UserError
from scalpel.sampling import common_prefix, complete

WORTH_SHARING = 64  # tokens: a batch is split rather than lose so much of the prefix its prompts share


class NoCache:
    """LightEval caches responses by model path, not by weights; nothing is cached here."""

    def _init_registry(self, registry) -> None:
        pass


class SharedPrefix(DynamicLayer):
    """Keys and values of one prefix (batch of 1), seen by every row of a batch and kept as they are."""

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            return super().update(keys, values)
        rows = keys.shape[0]
        shared = (t.expand(rows, -1, -1, -1) for t in (self.keys, self.values))
        return tuple(torch.cat([old, new], dim=-2) for old, new in zip(shared, (keys, values), strict=True))


class Engine(LightevalModel):
    def __init__(self, directory: Path, recipe: EvaluationRecipe, settings: EvaluationSettings):
        self.recipe, self.settings = recipe, settings
        self.config = ModelConfig(model_name="scalpel")
        self._cache = NoCache()
        self._tokenizer = load_tokenizer(directory)
        self.prompts = PromptManager(use_chat_template=True, tokenizer=self._tokenizer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = None
        self.beyond_positions: dict[str, int] = defaultdict(int)
        self._encoded: dict[tuple[str, str], tuple] = {}
        self.load(directory)

    def load(self, directory: Path) -> None:
        """Replace the weights by those of another checkpoint of the same architecture."""
        try:
            if self.model is None:
                model = AutoModelForCausalLM.from_pretrained(
                    directory, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
                )
                self.model = model.to(self.device).eval()
            else:
                self._replace_weights(directory)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            text = str(error).strip().splitlines()[0]
            raise UserError(
                f"{directory} does not load ({text}); delete its run's directory and train it again."
            ) from None
        self.beyond_positions.clear()

    def _replace_weights(self, directory: Path) -> None:
        """Copy a checkpoint's tensors into the model there is; raises where name or shape differ."""
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        for field in ("architectures", "hidden_size", "num_attention_heads", "rope_parameters", "rms_norm_eps"):
            if getattr(config, field, None) != getattr(self.model.config, field, None):
                raise ValueError(f"{field} differs from the first checkpoint's")
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise OSError("it holds no safetensors file")
        there = self.model.state_dict()
        tied = {"lm_head.weight"} if self.model.config.tie_word_embeddings else set()
        missing = set(there) - tied
        for file in files:
            for name, tensor in load_file(file).items():
                if name not in there or there[name].shape != tensor.shape:
                    raise ValueError(f"tensor {name} is unknown or has another shape than in the first checkpoint")
                there[name].copy_(tensor)
                missing.discard(name)
        if missing:
            raise ValueError(f"tensor {min(missing)} is missing")

    @property
    def tokenizer(self):
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return False  # the template writes BOS itself

    @property
    def max_length(self) -> int:
        return self.model.config.max_position_embeddings

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    # ------------------------------------------------------------ generation

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Sample `doc.num_samples` completions of at most `doc.generation_size` tokens for every doc.

        With a chat template a completion ends with EOS alone, as in LightEval; the name is LightEval's, too.
        """
        texts = [self.prompts.prepare_prompt(doc) for doc in docs]
        prompts = self.encode(texts)
        for doc, prompt in zip(docs, prompts, strict=True):
            if len(prompt) + doc.generation_size > self.max_length:
                self.beyond_positions[doc.task_name] += 1

        def work(part: list[int]) -> dict[int, list[list[int]]]:
            draws = [self._draws(docs[i]) for i in part]
            return dict(zip(part, self.complete([prompts[i] for i in part], draws), strict=True))

        # Questions of all tasks together, the longest first: fewer and fuller batches.
        order = sorted(range(len(docs)), key=lambda i: (-docs[i].generation_size, -len(prompts[i]), i))
        batches: list[list[int]] = [[]]
        for index in order:
            rows = sum(docs[i].num_samples for i in batches[-1]) + docs[index].num_samples
            if batches[-1] and rows > self.settings.batch_size:
                batches.append([])
            batches[-1].append(index)
        completions: dict[int, list[list[int]]] = {}
        for batch in batches:
            for part in _batches(batch, len(batch), work):
                completions |= part
        return [
            ModelResponse(
                input=text,
                input_tokens=prompt,
                text=self._tokenizer.batch_decode(completions[index], skip_special_tokens=True),
                output_tokens=completions[index],
            )
            for index, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
        ]

    def _draws(self, doc: Doc) -> np.ndarray:
        """Uniform numbers in [0, 1), one per sample and token: the same for this question in every checkpoint."""
        seed = (self.recipe.seed, zlib.crc32(doc.task_name.encode()), int(doc.id))
        return np.random.default_rng(seed).random((doc.num_samples, doc.generation_size))

    def complete(self, prompts: list[list[int]], draws: list[np.ndarray]) -> list[list[list[int]]]:
        """For every prompt its completions as token ids, without EOS (scalpel/sampling.py)."""
        return complete(self.model, self._tokenizer, prompts, draws, self.recipe.temperature, self.recipe.top_p)

    # ------------------------------------------------------------ log-likelihood

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Log-likelihood in nats of every choice after its prompt, tokenised by LightEval's `tok_encode_pair`."""
        pairs, spans = [], []
        for doc in docs:
            key = (doc.task_name, doc.id)
            if key not in self._encoded:  # the same for every checkpoint
                text = self.prompts.prepare_prompt(doc)
                self._encoded[key] = text, list(zip(*self.tok_encode_pair(text, doc.choices), strict=True))
            mine = self._encoded[key][1]
            spans.append((len(pairs), len(pairs) + len(mine)))
            pairs += mine
            if any(len(a) + len(b) > self.max_length for a, b in mine):
                self.beyond_positions[doc.task_name] += 1
        scores = self.loglikelihoods(pairs)
        return [
            ModelResponse(
                input=self._encoded[doc.task_name, doc.id][0],
                logprobs=[value for value, _ in scores[start:end]],
                argmax_logits_eq_gold=[greedy for _, greedy in scores[start:end]],
            )
            for doc, (start, end) in zip(docs, spans, strict=True)
        ]

    def loglikelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For every (context ids, continuation ids): log P(continuation | context) in nats, and if it is the argmax."""
        jobs: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
        for index, (context, continuation) in enumerate(pairs):
            jobs[(*context, *continuation[:-1])].append((index, continuation))
        results: dict[int, tuple[float, bool]] = {}
        for group in _sharing(sorted(jobs), self.settings.batch_size):
            for part in _batches(group, len(group), lambda part: self._score(part, jobs)):
                results |= part
        return [results[index] for index in range(len(pairs))]

    @torch.inference_mode()
    def _score(self, sequences: list[tuple[int, ...]], jobs) -> dict[int, tuple[float, bool]]:
        deepest = {s: max(len(continuation) for _, continuation in jobs[s]) for s in sequences}
        # Positions whose logits are wanted must not lie in the shared prefix.
        prefix = min(common_prefix(sequences), min(len(s) - deepest[s] for s in sequences))
        backbone, head = self.model.base_model, self.model.get_output_embeddings()
        cache = Cache(layers=[SharedPrefix() for _ in range(self.model.config.num_hidden_layers)])
        if prefix:
            backbone(torch.tensor([sequences[0][:prefix]], device=self.device), past_key_values=cache, use_cache=True)
        width = max(map(len, sequences)) - prefix  # padding on the right: causal attention never looks there
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[*s[prefix:], *[pad] * (width + prefix - len(s))] for s in sequences], device=self.device)
        hidden = backbone(ids, past_key_values=cache, use_cache=True).last_hidden_state
        results = {}
        for row, s in enumerate(sequences):
            end = len(s) - prefix
            logits = torch.log_softmax(head(hidden[row, end - deepest[s] : end]).float(), dim=-1)
            for index, continuation in jobs[s]:
                tail = logits[deepest[s] - len(continuation) :]
                target = torch.tensor(continuation, device=self.device)
                value = tail.gather(1, target[:, None]).sum().item()
                results[index] = value, bool((tail.argmax(-1) == target).all())
        return results

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise UserError("perplexity tasks are not part of the experiment; name a task of scalpel/config.py.")


def _sharing(sequences: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Sorted sequences in runs of at most `size` whose members share a long prefix."""
    run: list[tuple[int, ...]] = []
    shared = 0
    for sequence in sequences:
        common = common_prefix([run[0], sequence]) if run else len(sequence)
        if run and (len(run) == size or (len(run) > 1 and shared - common >= WORTH_SHARING)):
            yield run
            run, common = [], len(sequence)
        run.append(sequence)
        shared = common
    if run:
        yield run


def _batches(items: list, size: int, work: Callable[[list], dict]) -> Iterator[dict]:
    """`work` on parts of `items` of `size`; where the device's memory does not suffice, on halves of them."""
    start = 0
    while start < len(items):
        try:
            done = work(items[start : start + size])
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(
                    "one prompt alone exceeds the device's memory; lower max_new_tokens or shots."
                ) from None
            done, size = None, max(1, size // 2)
        if done is None:
            torch.cuda.empty_cache()
            continue
        yield done
        start += size


@contextlib.contextmanager
def quiet():
    """Keep the harnesses' progress bars and logs out of ours."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
