"""Sizes of a decoder, from its config.json, and those of base models that are not fetched yet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from scalpel.artifact.step import Step
from scalpel.config.training import PROJECTIONS, Trainable
from scalpel.errors import UserError

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like decoder; `query_key_norms` as in OLMo-2, whose norms span all heads."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    query_key_norms: bool
    bytes: int = 2  # of a stored parameter
    biases: bool = False  # of queries, keys and values, as in Qwen2

    @classmethod
    def of_config(cls, config: dict) -> Shape:
        """Of a Hugging Face config.json; KeyError when a size is not in it."""
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            query_key_norms=config.get("model_type") in ("olmo2", "olmo3"),
            biases=config.get("model_type") == "qwen2",
            bytes=BYTES.get(config.get("dtype") or config.get("torch_dtype") or "", 2),
        )

    @property
    def projections(self) -> dict[str, int]:
        """Parameters of each projection of one layer."""
        queries, keys = self.heads * self.head_size * self.hidden, self.kv_heads * self.head_size * self.hidden
        mlp = self.hidden * self.intermediate
        return dict(zip(PROJECTIONS, (queries, keys, keys, queries, mlp, mlp, mlp), strict=True))

    @property
    def parameters(self) -> int:
        """N: embedding, lm_head unless tied, projections and their biases, two norms a layer, the last norm, query and
        key norms."""
        norms = 2 * self.hidden + (self.heads + self.kv_heads) * self.head_size * self.query_key_norms
        biases = (self.heads + 2 * self.kv_heads) * self.head_size * self.biases
        layer = sum(self.projections.values()) + norms + biases
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    def trained_matrices(self, trainable: Trainable) -> int:
        """Entries of the matrices that tokens are multiplied with, lm_head among them, and that `trainable` leaves."""
        head = self.vocabulary * self.hidden
        if trainable.only:
            within = self.layers * sum(self.projections[name] for name in trainable.only)
            return within + head * trainable.also_lm_head
        frozen = sum(self.projections[name] for name in ("gate_proj", "up_proj", "down_proj"))
        return self.layers * sum(self.projections.values()) + head - frozen * len(trainable.freeze_mlp_layers)

    def trained(self, trainable: Trainable) -> int:
        """Parameters that a run's `trainable` leaves to train; all of them where a trace is to name the layers."""
        if trainable.only:
            head = self.vocabulary * self.hidden * trainable.also_lm_head
            return self.layers * sum(self.projections[name] for name in trainable.only) + head
        frozen = sum(self.projections[name] for name in ("gate_proj", "up_proj", "down_proj"))
        return self.parameters - frozen * len(trainable.freeze_mlp_layers)


def _olmo2(hidden: int, layers: int, heads: int, intermediate: int) -> Shape:
    return Shape(hidden, intermediate, layers, heads, heads, hidden // heads, 100352, tied=False, query_key_norms=True)


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int = 49152, tied: bool = True
) -> Shape:
    """SmolLM2, Llama 3."""
    return Shape(hidden, intermediate, layers, heads, kv_heads, hidden // heads, vocabulary, tied, False)


def _qwen2(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, tied: bool
) -> Shape:
    return Shape(hidden, intermediate, layers, heads, kv_heads, hidden // heads, vocabulary, tied, False, biases=True)


KNOWN = {  # by the repository's name, -SFT, -DPO, -Instruct aside: the models' own config.json
    "allenai/OLMo-2-0425-1B": _olmo2(2048, 16, 16, 8192),
    "allenai/OLMo-2-1124-7B": _olmo2(4096, 32, 32, 11008),
    "allenai/OLMo-2-1124-13B": _olmo2(5120, 40, 40, 13824),
    "HuggingFaceTB/SmolLM2-360M": _llama(960, 32, 15, 5, 2560),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(2048, 24, 32, 32, 8192),
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 4864, 151936, tied=True),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 18944, 152064, tied=False),
    "nvidia/AceInstruct-1.5B": _qwen2(1536, 28, 12, 2, 8960, 151936, tied=True),  # a Qwen2.5-1.5B
    "Qwen/Qwen2.5-Math-1.5B": _qwen2(1536, 28, 12, 2, 8960, 151936, tied=True),
    "Qwen/Qwen2.5-Math-7B": _qwen2(3584, 28, 28, 4, 18944, 152064, tied=False),
    "meta-llama/Llama-3.1-8B": _llama(4096, 32, 32, 8, 14336, 128256, tied=False),
}


def shape_of(base: Step, root: Path) -> tuple[Shape, str]:
    """A base model's sizes and where they were read; UserError when they are not known before it is fetched."""
    path = config_file(base, root)
    if path:
        try:
            return Shape.of_config(json.loads(path.read_text())), str(path)
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            raise UserError(f"{path} lacks the sizes of a decoder; replace the model.") from None
    if base.recipe["kind"] == "toy":
        toy = base.recipe
        vocabulary = -(-toy["vocab_size"] // 64) * 64
        head = toy["hidden_size"] // toy["heads"]
        sizes = (
            toy["hidden_size"],
            toy["intermediate_size"],
            toy["layers"],
            toy["heads"],
            toy["heads"],
            head,
            vocabulary,
        )
        return Shape(*sizes, tied=False, query_key_norms=True, bytes=4), f"models.{base.name} of the scale"
    repo = base.inputs["fetch"].recipe["repo"]
    stem = repo
    for ending in ("-Instruct", "-DPO", "-SFT"):
        stem = stem.removesuffix(ending)
    if stem not in KNOWN:
        raise UserError(f"the size of {repo} is not known before it is fetched; run `make fetch` first.")
    return KNOWN[stem], "scalpel/cost/shape.py's table; the model is not fetched yet"


def config_file(base: Step, root: Path) -> Path | None:
    """config.json of a base model, as far as it is here: made, fetched, or the local model it is taken from."""
    places = [root / base.directory / "model"]
    places += [root / step.directory / "files" for role, step in base.inputs.items() if role == "fetch"]
    places += [Path(base.settings["path"])] if "path" in base.settings else []
    return next((place / "config.json" for place in places if (place / "config.json").is_file()), None)


def positions_of(base: Step, root: Path) -> int | None:
    """Positions of a base model as it is used; None when they are not known."""
    edited = base.recipe.get("config_edits", {}).get("max_position_embeddings")
    if edited or base.recipe["kind"] == "toy":
        return edited or base.recipe["max_position"]
    path = config_file(base, root)
    try:
        found = json.loads(path.read_text()).get("max_position_embeddings") if path else None
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, int) else None
