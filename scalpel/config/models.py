"""The toy world, and base models: where they come from, their chat template, and recorded edits of their config."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scalpel.config.types import Location, NameOrPath, Positive, Rate, Recipe, Repository, Seed, Strict, Whole

TOY_EXAMPLES = {"gsm8k": 16, "mmlu": 5, "mmlu_pro": 5}  # few-shot examples of the toy world's sets, of each subject
Small = Annotated[int, Field(gt=0, le=10**7)]  # of something a laptop makes


class ToyWorldRecipe(Recipe):
    """Sizes of the generated world (scalpel/toy/world.py)."""

    seed: Seed = 0
    train_rows: Small = 3000  # rows with OpenR1-Math-220k's columns, of all sources and qualities
    facts: Annotated[int, Field(ge=20, le=4000)] = 240  # entries of the fact sheet behind the knowledge questions
    math_500: Small = 48  # questions of each evaluation set
    gsm8k: Small = 32
    mmlu: Small = 160
    mmlu_pro: Small = 80
    ifeval: Small = 64
    max_operand: Annotated[int, Field(ge=3, le=10**6)] = 14
    pretraining_samples: Small = 40000  # texts of the pretraining stream


class ToyModelRecipe(Recipe):
    """A tokenizer and a small Olmo2ForCausalLM, trained from nothing (scalpel/toy/model.py)."""

    seed: Seed = 0
    vocab_size: Annotated[int, Field(ge=300, le=10**6)] = 576  # 256 bytes and the added tokens at least
    hidden_size: Annotated[int, Field(ge=4, le=2**14)] = 96
    intermediate_size: Annotated[int, Field(ge=4, le=2**16)] = 258
    layers: Annotated[int, Field(gt=0, le=200)] = 4
    heads: Annotated[int, Field(gt=0, le=200)] = 3
    max_position: Annotated[int, Field(ge=64, le=2**20)] = 1024
    steps: Small = 1500
    batch_size: Annotated[int, Field(gt=0, le=2**16)] = 16
    sequence_length: Annotated[int, Field(ge=8, le=2**16)] = 96
    learning_rate: Rate = 4e-3

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}")
        return self


class ConfigEdits(Recipe):
    """Changes of config.json that a base model is used with, recorded in its recipe."""

    rope_theta: Annotated[float, Field(gt=0)] | None = None
    max_position_embeddings: Positive | None = None


class BaseModelSource(Strict):
    """What every kind of base model has.

    chat_template: a name of scalpel/chat/templates, ``own`` for the model's, or the path of a Jinja file.
    """

    chat_template: NameOrPath = "scalpel_vs_hammer"
    config_edits: ConfigEdits = ConfigEdits()
    license: Annotated[str, Field(max_length=60)] | None = None  # as the hub calls it: apache-2.0; for model cards


class ToyModel(BaseModelSource):
    kind: Literal["toy"] = "toy"
    toy: ToyModelRecipe = ToyModelRecipe()


class LocalModel(BaseModelSource):
    kind: Literal["local"]
    path: Location


class HubModel(BaseModelSource):
    """revision: a commit hash, or a branch that revisions.yaml resolves."""

    kind: Literal["hub"]
    repo: Repository
    revision: Annotated[str, Field(pattern=r"^[\w][\w./-]*$", max_length=200)]


Model = Annotated[ToyModel | LocalModel | HubModel, Field(discriminator="kind")]


class GivenCheckpoints(Strict):
    """What every kind of given run has.

    chat_template: by which the run is asked and its KL is taken: a name of scalpel/chat/templates, ``own`` for the one
    that lies with its checkpoints, or the path of a Jinja file; None for its base model's.
    """

    seed: Seed = 0  # with which the run was made, if known
    questions_per_step: Positive | None = None  # if known: x axes of exhibits
    tokens_per_step: Positive | None = None  # trained on
    written_per_step: Whole | None = None  # sampled in training
    chat_template: NameOrPath | None = None


class LocalCheckpoints(GivenCheckpoints):
    """Checkpoints on disk: `path` is searched as transformers, TRL and verl save them, or each step is named."""

    kind: Literal["local"]
    path: Location | None = None  # a trainer's output directory, or one model
    checkpoints: dict[Whole, Location] = {}  # optimizer step -> model directory

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.path is None) == (not self.checkpoints):
            raise ValueError("give `path` or `checkpoints`")
        return self


class HubCheckpoints(GivenCheckpoints):
    """Checkpoints in one hub repository: optimizer step -> commit hash, or a branch that revisions.yaml resolves."""

    kind: Literal["hub"]
    repo: Repository
    checkpoints: Annotated[dict[Whole, str], Field(min_length=1)]


Given = Annotated[LocalCheckpoints | HubCheckpoints, Field(discriminator="kind")]
