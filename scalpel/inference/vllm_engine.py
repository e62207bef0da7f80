"""The engine for GPUs: vLLM in this process, on one GPU or, with its CPU build, on none.

It differs from transformers in rounding and in its random numbers, so which engine ran is part of a recipe. It cannot
go beyond the model's positions: a completion ends there (`end` None), and a prompt without room for a token is refused.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalpel.chat import load_tokenizer
from scalpel.errors import UserError
from scalpel.inference import VLLM_ENVIRONMENT
from scalpel.inference.requests import Completion, Request, end_tokens
from scalpel.weights import DTYPES, architecture, check_weights, checked, read_tensors

if TYPE_CHECKING:
    import torch

TOKENS_ASKED = 128  # of which vLLM gives log-probabilities after one prompt, at most


def llm_arguments(directory: Path | str, dtype: str, memory_fraction: float, gpu: bool) -> dict[str, Any]:
    """Of vLLM's LLM."""
    return {
        "model": str(directory),
        "dtype": dtype,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "gpu_memory_utilization": memory_fraction,
        "enforce_eager": not gpu,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # those of the distribution sampled from
        "max_logprobs": TOKENS_ASKED,
        "disable_log_stats": True,
        "seed": 0,
    }


def sampling_arguments(temperature: float, top_p: float, top_k: int | None) -> dict[str, Any]:
    """Of vLLM's SamplingParams, a completion's seed and length aside."""
    return {  # vLLM knows no empty nucleus; the most likely token is always in it
        "temperature": temperature if top_p else 0.0,
        "top_p": top_p or 1.0,
        "top_k": top_k or 0,
        "detokenize": False,
    }


class VLLMEngine:
    def __init__(self, directory: Path, memory_fraction: float = 0.9, dtype: str = "auto"):
        """memory_fraction: of the GPU, for weights and cache. dtype: as in scalpel.weights.load_model."""
        self.model = architecture(directory)
        check_weights(directory, self.model)
        os.environ.update(VLLM_ENVIRONMENT)
        import torch
        from vllm import LLM

        self.dtype = DTYPES.get(dtype, self.model.config.dtype)  # of itself vLLM makes bfloat16 of float32
        name = str(self.dtype).removeprefix("torch.")
        self.llm = LLM(**llm_arguments(directory, name, memory_fraction, torch.cuda.is_available()))
        config = self.llm.llm_engine.model_config.try_get_generation_config()
        self.ends = end_tokens(config.get("eos_token_id"), load_tokenizer(directory).eos_token_id)

    @property
    def max_length(self) -> int:
        return self.llm.llm_engine.model_config.max_model_len

    def load(self, directory: Path) -> None:
        check_weights(directory, self.model)
        self.load_tensors(read_tensors(directory))

    def load_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """As the protocol says; also RuntimeError when they end early: vLLM's layers are then half loaded."""
        try:
            weights = ((name, tensor.to(self.dtype)) for name, tensor in checked(tensors, self.model))
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        except ConnectionError as error:
            raise RuntimeError(
                "the weights ended early: vLLM cannot begin again with its layers half loaded"
            ) from error
        if not self.llm.reset_prefix_cache():  # it was filled by other weights
            raise RuntimeError("vLLM keeps a prefix cache of other weights")

    def complete(
        self,
        requests: Sequence[Request],
        temperature: float,
        top_p: float,
        logprobs: bool = False,
        top_k: int | None = None,
    ) -> list[list[Completion]]:
        from vllm import SamplingParams

        asked = [
            (
                request.prompt,
                SamplingParams(
                    **sampling_arguments(temperature, top_p, top_k),
                    max_tokens=request.max_tokens,
                    seed=seed,
                    stop_token_ids=sorted(self.ends),
                    logprobs=0 if logprobs else None,
                ),
            )
            for request in requests
            for seed in sample_seeds(request)
        ]
        found = iter([self._completion(output.outputs[0]) for output in self._run(asked)])
        return [[next(found) for _ in range(request.samples)] for request in requests]

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        values = None
        if output.logprobs is not None:
            values = [those[token].logprob for token, those in zip(ids, output.logprobs, strict=True)]
        return Completion(ids[:-1], ids[-1], values) if ids and ids[-1] in self.ends else Completion(ids, None, values)

    def loglikelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Single tokens after one context, as letters of choices are, are one request and use the prefix cache.

        Longer continuations are scored as prompts. vLLM computes nothing for what it has in its prefix cache, so it
        does not look there for them.
        """
        from vllm import SamplingParams

        common = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
        results: dict[int, tuple[float, bool]] = {}
        by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
        longer: list[int] = []
        for number, (context, continuation) in enumerate(pairs):
            (by_context[tuple(context)] if len(continuation) == 1 else longer).append(number)
        single = [
            numbers[start : start + TOKENS_ASKED]
            for numbers in by_context.values()
            for start in range(0, len(numbers), TOKENS_ASKED)
        ]
        asked = [
            (
                pairs[numbers[0]][0],
                SamplingParams(logprob_token_ids=sorted({pairs[n][1][0] for n in numbers}), **common),
            )
            for numbers in single
        ]
        for numbers, output in zip(single, self._run(asked), strict=True):
            [best], [values] = output.outputs[0].token_ids, output.outputs[0].logprobs
            for number in numbers:
                [token] = pairs[number][1]
                results[number] = values[token].logprob, token == best
        asked = [
            (pairs[n][0] + pairs[n][1], SamplingParams(prompt_logprobs=0, skip_reading_prefix_cache=True, **common))
            for n in longer
        ]
        for number, output in zip(longer, self._run(asked), strict=True):
            context, continuation = pairs[number]
            found = output.prompt_logprobs[len(context) :]
            mine = [values[token] for token, values in zip(continuation, found, strict=True)]
            results[number] = sum(one.logprob for one in mine), all(one.rank == 1 for one in mine)
        return [results[number] for number in range(len(pairs))]

    def _run(self, asked: list[tuple[list[int], object]]) -> list:
        """vLLM's outputs, in order; UserError for a prompt that leaves no room for a token."""
        longest = max((len(prompt) for prompt, _ in asked), default=0)
        if longest >= self.max_length:
            raise UserError(
                f"vLLM stops at the model's {self.max_length} positions, a prompt has {longest} tokens; raise "
                "config_edits.max_position_embeddings of the model, or choose `inference: transformers`."
            )
        if not asked:
            return []
        return self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt, _ in asked], [params for _, params in asked], use_tqdm=False
        )


def sample_seeds(request: Request) -> list[int]:
    """A seed below 2**63 for each of a request's samples."""
    return (np.random.SeedSequence(request.seed).generate_state(request.samples, "u8") >> 1).tolist()
