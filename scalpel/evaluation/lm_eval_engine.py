"""lm-eval's model interface to an engine (scalpel/inference): log-likelihoods, and generation until a stop string.

Prompts are never cut; those beyond the model's positions are counted. Random numbers follow from task and question.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from scalpel.errors import UserError
from scalpel.inference.requests import Engine, Request

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

GENERATION = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}  # of a task's generation_kwargs


class LMEvalEngine(TemplateLM):
    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, seed: int):
        super().__init__()
        self.engine, self.tokenizer, self.seed = engine, tokenizer, seed
        self.task = ""  # whose requests come now
        self.max_tokens = 0  # of its completions, where it does not say itself
        self.beyond_positions: dict[str, int] = defaultdict(int)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return "scalpel"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encode([string])[0]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As TemplateLM's: trailing space belongs to the continuation, whose ids are what the context's leave over.

        Contexts are encoded once for all their choices, and texts in batches. What has no context is scored after the
        token that begins a text.
        """
        pairs = []
        for request in requests:
            context, continuation = request.args
            bare = context.rstrip()
            pairs.append((bare, context[len(bare) :] + continuation))
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        ids = dict(zip(contexts, self._encode(contexts), strict=True))
        encoded = []
        for start in range(0, len(pairs), 1000):
            part = pairs[start : start + 1000]
            for (context, _), whole in zip(part, self._encode([a + b for a, b in part]), strict=True):
                encoded.append((ids[context] or [self.prefix_token_id], whole[len(ids[context]) :]))
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        longest: dict[int, int] = {}
        for context, continuation in requests:
            longest[id(context)] = max(longest.get(id(context), 0), len(context) + len(continuation))
        if beyond := sum(length > self.engine.max_length for length in longest.values()):
            self.beyond_positions[self.task] += beyond
        return self.engine.loglikelihoods(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions up to the first of the task's stop strings, at its own temperature; greedy where it has none.

        A stop string ends no sampling, it cuts the text: what follows it is computed and thrown away.
        """
        prompts = self._encode([request.args[0] for request in requests])
        times: Counter = Counter()
        groups: dict[tuple[float, float], list[int]] = defaultdict(list)
        asked, stops = [], []
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            options = normalize_gen_kwargs(request.args[1], self.max_tokens)
            unknown = [name for name in options if name not in GENERATION]
            if unknown:
                raise UserError(
                    f"evaluation.tasks.{self.task}: generation_kwargs of its YAML asks for {unknown[0]!r}, which no "
                    f"engine here has (they have {', '.join(sorted(GENERATION))}); leave it out."
                )
            temperature = float(options.get("temperature") or 0.0) if options["do_sample"] else 0.0
            groups[temperature, float(options.get("top_p", 1.0))].append(number)
            stops.append([stop for stop in options["until"] if stop])
            which = (request.doc_id, request.idx)
            seed = (self.seed, zlib.crc32(self.task.encode()), *which, times[which])  # of each repetition its own
            times[which] += 1
            asked.append(Request(prompt, seed, 1, options["max_gen_toks"]))
            if len(prompt) + options["max_gen_toks"] > self.engine.max_length:
                self.beyond_positions[self.task] += 1
        texts = [""] * len(asked)
        for (temperature, top_p), numbers in groups.items():
            found = self.engine.complete([asked[n] for n in numbers], temperature, top_p)
            written = self.tokenizer.batch_decode([one.ids for [one] in found], skip_special_tokens=False)
            for number, text in zip(numbers, written, strict=True):
                ends = [place for stop in stops[number] if (place := text.find(stop)) >= 0]
                texts[number] = text[: min(ends, default=None)]
        return texts

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise UserError("perplexity of whole texts is no benchmark here; name another task.")
