"""LightEval's model interface to an engine (scalpel/inference).

Prompts are made by LightEval's own PromptManager with the tokenizer's chat template; no system message is given, the
template supplies the system prompt. Prompts are never cut: one that leaves no room for its new tokens is counted in
`beyond_positions`. Random numbers follow from task and question alone, so that all checkpoints share them.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc

from scalpel.chat import opening
from scalpel.config.evaluation import EvaluationRecipe
from scalpel.errors import UserError
from scalpel.inference.requests import Engine, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class NoCache:
    """LightEval caches responses by model path, not by weights; nothing is cached here."""

    def _init_registry(self, registry: Any) -> None:
        pass


class LightevalEngine(LightevalModel):
    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, recipe: EvaluationRecipe):
        self.engine, self.recipe = engine, recipe
        self.config = ModelConfig(model_name="scalpel")
        self._cache = NoCache()
        self._tokenizer = tokenizer
        self.prompts = PromptManager(use_chat_template=True, tokenizer=tokenizer)
        self.opening = opening(tokenizer)  # without it metrics would not see where the reasoning began
        self.beyond_positions: dict[str, int] = defaultdict(int)
        self._encoded: dict[tuple[str, str], tuple] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return False  # the template writes BOS itself

    @property
    def max_length(self) -> int:
        return self.engine.max_length

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Sample `doc.num_samples` completions of at most `doc.generation_size` tokens for every doc.

        With a chat template a completion ends with EOS alone, as in LightEval; the name is LightEval's, too.
        """
        texts = [self.prompts.prepare_prompt(doc) for doc in docs]
        prompts = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        requests = [
            Request(prompt, self._seed(doc), doc.num_samples, doc.generation_size)
            for doc, prompt in zip(docs, prompts, strict=True)
        ]
        for doc, request in zip(docs, requests, strict=True):
            if len(request.prompt) + request.max_tokens > self.max_length:
                self.beyond_positions[doc.task_name] += 1
        responses = []
        found = self.engine.complete(requests, self.recipe.temperature, self.recipe.top_p)
        for text, request, completions in zip(texts, requests, found, strict=True):
            ids = [completion.ids for completion in completions]
            written = [self.opening + t for t in self._tokenizer.batch_decode(ids, skip_special_tokens=False)]
            responses.append(ModelResponse(input=text, input_tokens=request.prompt, text=written, output_tokens=ids))
        return responses

    def _seed(self, doc: Doc) -> tuple[int, ...]:
        return self.recipe.seed, zlib.crc32(doc.task_name.encode()), int(doc.id)

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Log-likelihood in nats of every choice after its prompt, tokenised by LightEval's `tok_encode_pair`."""
        pairs: list[tuple[list[int], list[int]]]
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
        scores = self.engine.loglikelihoods(pairs)
        return [
            ModelResponse(
                input=self._encoded[doc.task_name, doc.id][0],
                logprobs=[value for value, _ in scores[start:end]],
                argmax_logits_eq_gold=[greedy for _, greedy in scores[start:end]],
            )
            for doc, (start, end) in zip(docs, spans, strict=True)
        ]

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise UserError("perplexity of whole texts is no benchmark here; name another task.")
