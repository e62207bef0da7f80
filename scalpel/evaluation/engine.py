"""The model that both harnesses drive: one transformers model whose weights change from checkpoint to checkpoint.

Prompts are made by LightEval's own PromptManager with the tokenizer's chat template; no system message is
given, the template supplies the system prompt. Prompts are never cut: a prompt that leaves no room for its
new tokens is answered all the same and counted in `beyond_positions`.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import defaultdict
from pathlib import Path

import torch
from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from scalpel.chat import load_tokenizer
from scalpel.config import EvaluationRecipe, EvaluationSettings
from scalpel.errors import UserError


class NoCache:
    """LightEval caches responses by model path, not by weights; nothing is cached here."""

    def _init_registry(self, registry) -> None:
        pass


class Engine(LightevalModel):
    def __init__(self, directory: Path, recipe: EvaluationRecipe, settings: EvaluationSettings):
        self.recipe, self.settings = recipe, settings
        self.config = ModelConfig(model_name="scalpel")
        self._cache = NoCache()
        self._tokenizer = load_tokenizer(directory)
        self._tokenizer.padding_side = "left"
        self.prompts = PromptManager(use_chat_template=True, tokenizer=self._tokenizer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = None
        self.beyond_positions: dict[str, int] = defaultdict(int)
        self.load(directory)

    def load(self, directory: Path) -> None:
        """Replace the weights by those of another checkpoint of the same architecture."""
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            text = str(error).splitlines()[0]
            raise UserError(
                f"{directory} does not load ({text}); delete its run's directory and train it again."
            ) from None
        if self.model is None:
            self.model = model.to(self.device).eval()
        else:  # the same object, so that lm-eval's wrapper sees the new weights too
            self.model.load_state_dict(model.state_dict())
        self.beyond_positions.clear()

    @property
    def tokenizer(self):
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return False  # the template writes BOS itself

    @property
    def max_length(self) -> int:
        return self.model.config.max_position_embeddings

    # ------------------------------------------------------------ generation

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Sample `doc.num_samples` completions of at most `doc.generation_size` tokens for every doc."""
        responses: dict[int, ModelResponse] = {}
        by_task: dict[str, list[int]] = defaultdict(list)
        for index, doc in enumerate(docs):
            by_task[doc.task_name].append(index)
        for task, indices in by_task.items():
            torch.manual_seed(self.recipe.seed + zlib.crc32(task.encode()))
            encoded = {i: self.tok_encode(self.prompts.prepare_prompt(docs[i])) for i in indices}
            samples = docs[indices[0]].num_samples
            per_batch = max(1, self.settings.batch_size // samples)
            ordered = sorted(indices, key=lambda i: (-len(encoded[i]), i))
            for start in range(0, len(ordered), per_batch):
                part = ordered[start : start + per_batch]
                for i, response in zip(
                    part, self._generate([encoded[i] for i in part], [docs[i] for i in part]), strict=True
                ):
                    responses[i] = response
        return [responses[i] for i in range(len(docs))]

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], docs: list[Doc]) -> list[ModelResponse]:
        longest = max(map(len, prompts))
        wanted, samples = docs[0].generation_size, docs[0].num_samples
        for doc, prompt in zip(docs, prompts, strict=True):
            if len(prompt) + wanted > self.max_length:
                self.beyond_positions[doc.task_name] += 1
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        sampling = (
            {"do_sample": True, "temperature": self.recipe.temperature, "top_p": self.recipe.top_p}
            if self.recipe.temperature
            else {"do_sample": False}
        )
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=wanted,
            num_return_sequences=samples if self.recipe.temperature else 1,
            pad_token_id=pad,
            **sampling,
        )[:, longest:]
        if not self.recipe.temperature and samples > 1:
            output = output.repeat_interleave(samples, dim=0)
        texts = self._tokenizer.batch_decode(output, skip_special_tokens=True)
        responses = []
        for index, (doc, prompt) in enumerate(zip(docs, prompts, strict=True)):
            mine = slice(index * samples, (index + 1) * samples)
            cut = [_until(text, doc.stop_sequences or ()) for text in texts[mine]]
            responses.append(
                ModelResponse(
                    input=self._tokenizer.decode(prompt),
                    input_tokens=prompt,
                    text=cut,
                    output_tokens=output[mine].tolist(),
                )
            )
        return responses

    # ------------------------------------------------------------ log-likelihood

    @torch.inference_mode()
    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Log-likelihood in nats of every choice after its prompt, tokenised by LightEval's `tok_encode_pair`."""
        jobs: dict[tuple[int, ...], list[tuple[int, int, list[int]]]] = defaultdict(list)
        texts = []
        for index, doc in enumerate(docs):
            texts.append(self.prompts.prepare_prompt(doc))
            contexts, continuations = self.tok_encode_pair(texts[-1], doc.choices, pairwise=False)
            for choice, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
                if len(context) + len(continuation) > self.max_length and choice == 0:
                    self.beyond_positions[doc.task_name] += 1
                # Choices that differ in their last token only, as letters do, share one forward pass.
                jobs[(*context, *continuation[:-1])].append((index, choice, continuation))
        scores = [[0.0] * len(doc.choices) for doc in docs]
        greedy = [[False] * len(doc.choices) for doc in docs]
        sequences = sorted(jobs, key=lambda s: (-len(s), s))
        backbone, head = self.model.base_model, self.model.get_output_embeddings()
        for start in range(0, len(sequences), self.settings.batch_size):
            part = sequences[start : start + self.settings.batch_size]
            width = len(part[0])
            ids = torch.tensor(
                [[*s, *[self._tokenizer.pad_token_id] * (width - len(s))] for s in part], device=self.device
            )
            mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in part], device=self.device)
            hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for row, sequence in enumerate(part):
                deepest = max(len(continuation) for _, _, continuation in jobs[sequence])
                states = hidden[row, len(sequence) - deepest : len(sequence)]
                logits = torch.log_softmax(head(states).float(), dim=-1)
                for index, choice, continuation in jobs[sequence]:
                    tail = logits[deepest - len(continuation) :]
                    target = torch.tensor(continuation, device=self.device)
                    scores[index][choice] = tail.gather(1, target[:, None]).sum().item()
                    greedy[index][choice] = bool((tail.argmax(-1) == target).all())
        return [
            ModelResponse(input=text, logprobs=s, argmax_logits_eq_gold=g)
            for text, s, g in zip(texts, scores, greedy, strict=True)
        ]

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise UserError("perplexity tasks are not part of the experiment; name a task of scalpel/config.py.")


def _until(text: str, stops) -> str:
    """`text` up to the first of the stop sequences."""
    ends = [position for stop in stops if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


@contextlib.contextmanager
def quiet():
    """Keep the harnesses' progress bars and logs out of ours."""
    import logging

    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
