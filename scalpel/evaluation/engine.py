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
from scalpel.config import EvaluationRecipe, EvaluationSettings
from scalpel.errors import UserError

WORTH_SHARING = 64  # tokens: a batch is split rather than lose so much of the prefix its prompts share
ROOM = 64  # tokens by which a cache grows, so that not every new token copies it


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


class Growing(DynamicLayer):
    """Keys and values written in place into room that is there already; `keys` and `values` are views of it."""

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.room = [keys[..., :0, :], values[..., :0, :]]
        start = self.get_seq_length()
        end = start + keys.shape[-2]
        if end > self.room[0].shape[-2] or self.room[0].shape[0] != keys.shape[0]:
            old = (self.keys, self.values) if start else self.room
            self.room = [t.new_empty((*keys.shape[:2], end + ROOM, keys.shape[-1])) for t in (keys, values)]
            for room, kept in zip(self.room, old, strict=True):
                room[..., :start, :] = kept
        for room, new in zip(self.room, (keys, values), strict=True):
            room[..., start:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values


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

    @torch.inference_mode()
    def complete(self, prompts: list[list[int]], draws: list[np.ndarray]) -> list[list[list[int]]]:
        """For every prompt its completions as token ids, without EOS.

        prompts: ids, none empty. draws: per prompt float64 (samples, most new tokens) in [0, 1); the inverse of the
        cumulative probability turns each into a token.
        """
        ends = self.model.generation_config.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        prefix = _common_prefix(prompts)
        cache = Cache(layers=[Growing() for _ in range(self.model.config.num_hidden_layers)])
        if prefix:
            self._forward(torch.tensor([prompts[0][:prefix]]), cache)
            cache.batch_repeat_interleave(len(prompts))
        width = max(map(len, prompts)) - prefix  # padding stands between the shared prefix and the rest
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width + prefix - len(p)) + p[prefix:] for p in prompts])
        lengths = torch.tensor([len(p) for p in prompts])
        place = torch.arange(width) - width + lengths[:, None]  # position of each column, below `prefix` for padding
        mask = torch.cat([torch.ones(len(prompts), prefix, dtype=torch.long), (place >= prefix).long()], dim=1)
        logits = self._forward(ids, cache, mask, place.clamp(min=0))

        owners = [(n, sample) for n, d in enumerate(draws) for sample in range(len(d))]  # of the rows of the batch
        uniform = torch.zeros(len(owners), max(d.shape[1] for d in draws), dtype=torch.float64)
        for row, (n, sample) in enumerate(owners):
            uniform[row, : draws[n].shape[1]] = torch.from_numpy(draws[n][sample])
        completions: list[list[list[int]]] = [[[] for _ in d] for d in draws]
        rows = torch.tensor([n for n, _ in owners])
        cache.batch_select_indices(rows.to(self.device))
        logits, mask, lengths = logits[rows.to(self.device)], mask[rows], lengths[rows]
        ended = [False] * len(owners)
        for step in range(uniform.shape[1]):
            tokens = self._pick(logits, uniform[:, step])
            for row, token in enumerate(tokens.tolist()):
                n, sample = owners[row]
                if not ended[row] and token not in ends:
                    completions[n][sample].append(token)
                    ended[row] = step + 1 == draws[n].shape[1]
                else:
                    ended[row] = True
            if all(ended):
                break
            if sum(ended) > 0.25 * len(ended):  # the others go on without them
                kept = [row for row in range(len(ended)) if not ended[row]]
                owners, ended = [owners[row] for row in kept], [False] * len(kept)
                rows = torch.tensor(kept)
                cache.batch_select_indices(rows.to(self.device))
                tokens, mask, lengths, uniform = tokens[rows], mask[rows], lengths[rows], uniform[rows]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self._forward(tokens[:, None], cache, mask, lengths[:, None] + step)
        return completions

    def _forward(self, ids, cache, mask=None, positions=None):
        """Logits of the last column, float32 (rows, vocabulary); keys and values go into `cache`."""
        on = {"attention_mask": mask, "position_ids": positions}
        on = {name: tensor.to(self.device) for name, tensor in on.items() if tensor is not None}
        output = self.model(ids.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1, **on)
        return output.logits[:, -1].float()

    def _pick(self, logits, draws):
        """Token ids (rows,) on the CPU: greedy at temperature 0, else sampled from the top-p nucleus."""
        if not self.recipe.temperature:
            return logits.argmax(-1).cpu()
        probabilities, order = (logits / self.recipe.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        above = probabilities.cumsum(-1, dtype=torch.float64) - probabilities
        nucleus = (above < self.recipe.top_p) | (above == 0)
        cumulative = (probabilities * nucleus).cumsum(-1, dtype=torch.float64)
        chosen = (cumulative <= draws.to(self.device)[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
        return order.gather(-1, chosen.clamp(max=nucleus.sum(-1, keepdim=True) - 1))[:, 0].cpu()

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
        prefix = min(_common_prefix(sequences), min(len(s) - deepest[s] for s in sequences))
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


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, at least one of each being left over."""
    first, last = min(sequences), max(sequences)
    most = min(map(len, sequences)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def _sharing(sequences: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Sorted sequences in runs of at most `size` whose members share a long prefix."""
    run: list[tuple[int, ...]] = []
    shared = 0
    for sequence in sequences:
        common = _common_prefix([run[0], sequence]) if run else len(sequence)
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
