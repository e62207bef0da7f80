"""What all training methods share: optimizer, schedule, which parameters train, and how a run is carried out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scalpel.config.types import AtOnce, Few, Fraction, Name, Positive, Rate, Recipe, Strict, Whole

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Trainable(Recipe):
    """Which parameters train; with nothing given, all of them. One of `only`, `freeze_mlp_layers` and
    `freeze_mlp_above` at most."""

    only: tuple[Projection, ...] = ()  # train these projections alone
    freeze_mlp_layers: tuple[Whole, ...] = ()  # zero-indexed layers whose gate/up/down stay as they were
    freeze_mlp_above: Fraction | None = None  # likewise the layers whose AIE in the run's `layers_from` is above this
    also_lm_head: bool = False  # with `only`: the authors' code left lm_head trainable, the text does not

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(map(bool, (self.only, self.freeze_mlp_layers, self.freeze_mlp_above is not None))) > 1:
            raise ValueError("give one of `only`, `freeze_mlp_layers` and `freeze_mlp_above`")
        if self.also_lm_head and not self.only:
            raise ValueError("`also_lm_head` goes with `only`")
        return self


class MethodRecipe(Recipe):
    """AdamW, its schedule and the checkpoints, common to all methods; each method adds `method` and its own fields."""

    method: str
    learning_rate: Rate
    schedule: Literal["constant_with_warmup", "linear", "cosine", "constant"] = "constant_with_warmup"
    warmup: Fraction = 0.1  # of all steps
    least_rate: Fraction = 0.0  # of learning_rate, below which linear and cosine schedules do not fall
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.2
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoints: Few = 20
    trainable: Trainable = Trainable()

    @model_validator(mode="after")
    def _room_for_checkpoints(self) -> Self:
        steps = getattr(self, "steps", None)
        if steps is not None and steps < self.checkpoints:
            raise ValueError(f"{self.checkpoints} checkpoints do not fit into {steps} steps; lower `checkpoints`")
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_seed(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "seed" in raw:
            raise ValueError("a run's seed is not part of its recipe: give `seeds: [42]` beside `method`")
        return raw


Tracking = Literal["none", "tensorboard", "wandb", "trackio"]


class RolloutServer(Strict):
    """The processes that write completions (scalpel/inference/server.py); without one the ranks write their own."""

    gpus: Whole = 1  # of each server node, one server process each
    nodes: Whole = 0  # nodes of their own; 0: the server shares the first training node
    start_seconds: Positive = 900  # until it must answer
    restarts: Whole = 3  # a server that died is started again so many times
    memory_fraction: Fraction = 0.9  # of a GPU, for weights and cache


Engine = Literal["single", "zero2", "fsdp"]


class TrainSettings(Strict):
    """How a training run is carried out; none of it may change what it computes."""

    sequences_per_device: AtOnce = 64
    completions_at_once: AtOnce = 256  # of a rank that writes its own
    gradient_checkpointing: bool = False
    threads: Few = 1  # of each rank
    keep_state: Few = 2  # resumable states kept during the run
    ranks: Few = 1  # training processes on each training node
    nodes: Few = 1  # training nodes
    engine: Engine = "single"  # how several ranks share the work
    engine_of: dict[Name, Engine] = {}  # method -> its engine, in place of `engine`
    offload: bool = False  # zero2: optimizer states in the host's memory
    server: RolloutServer | None = None  # for methods that sample
    tracking: Tracking = "none"  # live curves; config.yaml's `tracking`, where that is given
    stop_before_seconds: Positive = 600  # before the job's time limit, or earlier: save, and be queued again

    @model_validator(mode="after")
    def _engine_for_ranks(self) -> Self:
        if "single" in (self.engine, *self.engine_of.values()) and self.ranks * self.nodes > 1:
            raise ValueError("several ranks need `engine: zero2` or `engine: fsdp`")
        if self.offload and self.engine != "zero2":
            raise ValueError("`offload` goes with `engine: zero2`")
        return self

    def of(self, method: str) -> TrainSettings:
        """Those of this method's runs."""
        engine = self.engine_of.get(method, self.engine)
        offload = self.offload and engine == "zero2"
        return self.model_copy(update={"engine": engine, "offload": offload, "engine_of": {}})
