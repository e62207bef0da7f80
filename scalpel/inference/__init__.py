"""Running models: one interface (requests.py), and the engines behind it.

transformers_engine.py runs a model in this process with our own sampling and scoring, vllm_engine.py runs vLLM,
remote.py asks servers of either (server.py). Nothing is imported before an engine is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from scalpel.config.types import AtOnce, Fraction, Strict
from scalpel.inference.requests import Engine

VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the weights are loaded into this process's model
    "VLLM_NO_USAGE_STATS": "1",
    # Of vLLM's two model runners, which have random numbers of their own, the one that its CPU build takes, too. Left
    # to itself vLLM goes by the model, by its own version and by whether Triton finds a GPU.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}


class EngineSettings(Strict):
    """How an engine runs; none of it decides what the model says, but for rounding and `dtype`."""

    batch_size: AtOnce = 64  # transformers: sequences computed together
    memory_fraction: Fraction = 0.9  # vllm: of a GPU, for weights and cache
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the weights; auto: as they were saved


def open_engine(kind: Literal["transformers", "vllm"], directory: Path, settings: EngineSettings) -> Engine:
    """The engine of this kind with the model saved in `directory`; UserError when the model does not load."""
    if kind == "vllm":
        from scalpel.inference.vllm_engine import VLLMEngine

        return VLLMEngine(directory, settings.memory_fraction, settings.dtype)
    from scalpel.inference.transformers_engine import TransformersEngine

    return TransformersEngine.open(directory, settings.batch_size, settings.dtype)
