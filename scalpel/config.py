"""Typed configuration: config.yaml + one scale + the studies, validated in this one place.

Every model below forbids unknown keys. `load` turns pydantic's findings into one sentence that names
the field and, for an unknown key, the nearest valid one. Nothing here imports torch: the Snakefile does.

Classes named *Recipe are what a stage's ``recipe.json`` holds: only what decides the content of a result.
Paths, device, thread and micro-batch settings stand in *Settings and are never hashed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scalpel.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = ("grpo", "sft")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------- the toy world and the toy model


class ToyWorldRecipe(Strict):
    """Sizes of the generated world (scalpel/toy/world.py)."""

    seed: int = 0
    train_rows: Positive = 3000  # rows with OpenR1-Math-220k's columns, of all sources and qualities
    facts: Positive = 240  # entries of the fact sheet behind the knowledge questions
    math_500: Positive = 48  # questions of each evaluation set
    gsm8k: Positive = 32
    mmlu: Positive = 160
    mmlu_pro: Positive = 80
    ifeval: Positive = 32
    max_operand: Positive = 14
    pretraining_samples: Positive = 40000  # texts of the pretraining stream


class ToyModelRecipe(Strict):
    """A tokenizer and a small Olmo2ForCausalLM, trained from nothing (scalpel/toy/model.py)."""

    seed: int = 0
    vocab_size: Positive = 576
    hidden_size: Positive = 96
    intermediate_size: Positive = 258
    layers: Positive = 4
    heads: Positive = 3
    max_position: Positive = 1024
    steps: Positive = 1500
    batch_size: Positive = 16
    sequence_length: Positive = 96
    learning_rate: float = 4e-3


# ---------------------------------------------------------------- sources of data and models


class ToySource(Strict):
    kind: Literal["toy"] = "toy"


class ParquetSource(Strict):
    """A parquet file with OpenR1-Math-220k's columns, or others renamed by `columns`.

    `columns` maps one of OpenR1-Math-220k's column names to a column of the file;
    `constants` gives a column one value for all rows, e.g. ``{source: cn_k12}``.
    """

    kind: Literal["parquet"]
    path: Path
    columns: dict[str, str] = {}
    constants: dict[str, Any] = {}
    boxed_answer_of: str | None = None  # column whose last \\boxed{...} is the answer


class HubDataset(Strict):
    kind: Literal["hub"]
    repo: str
    revision: Commit
    files: Annotated[list[str], Field(min_length=1)]  # patterns of paths inside the repository


Source = Annotated[ToySource | ParquetSource | HubDataset, Field(discriminator="kind")]


class ToyModel(Strict):
    kind: Literal["toy"] = "toy"
    toy: ToyModelRecipe = ToyModelRecipe()


class LocalModel(Strict):
    kind: Literal["local"]
    path: Path


class HubModel(Strict):
    kind: Literal["hub"]
    repo: str
    revision: Commit


Model = Annotated[ToyModel | LocalModel | HubModel, Field(discriminator="kind")]


# ---------------------------------------------------------------- data


class FilterRecipe(Strict):
    """Which rows are trained on (paper section 3.1 and appendix A)."""

    source: str = "cn_k12"  # the value wanted in column `source`
    max_tokens: Positive = 4096  # of the rendered conversation: system prompt, question, trace, EOS
    decontamination_ngram: Positive = 13  # words; a shorter question is compared whole
    verified_by: Literal["math_verify", "math_verify_or_llama"] = "math_verify"
    require_complete: bool = True  # is_reasoning_complete of the chosen trace
    unparsable_answer: Literal["stop", "drop"] = "stop"  # a kept row whose answer math-verify cannot parse
    max_prompt_tokens: Positive | None = None  # None: no cap of its own


class OrderRecipe(Strict):
    """The one question order both algorithms follow: `epochs` permutations of the kept rows, in a row."""

    seed: int = 42
    epochs: Positive = 3


# ---------------------------------------------------------------- training


class Trainable(Strict):
    """Which parameters train. Exactly one of the two may be given; neither means all of them."""

    only: tuple[Projection, ...] = ()  # train these projections alone
    freeze_mlp_layers: tuple[int, ...] = ()  # zero-indexed layers whose gate/up/down stay as they were
    also_lm_head: bool = False  # with `only`: the authors' code left lm_head trainable, the text does not

    @model_validator(mode="after")
    def one_way(self):
        if self.only and self.freeze_mlp_layers:
            raise ValueError("give `only` or `freeze_mlp_layers`, not both")
        if self.also_lm_head and not self.only:
            raise ValueError("`also_lm_head` goes with `only`")
        return self


class OptimizerRecipe(Strict):
    """AdamW and its schedule, common to all methods."""

    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["constant_with_warmup", "linear", "cosine", "constant"] = "constant_with_warmup"
    warmup: Fraction = 0.1  # of all steps
    weight_decay: float = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.2
    seed: int = 42
    dtype: Literal["float32", "bfloat16"] = "float32"


class SFTRecipe(OptimizerRecipe):
    """Supervised fine-tuning on the chosen trace of each question."""

    method: Literal["sft"] = "sft"
    matching: Literal["sequences", "questions", "tokens"] = "sequences"
    # sequences: `sequences_per_step` different questions a step, as many as GRPO has completions (the paper)
    # questions: the very questions of GRPO's step, `questions_per_step` of them
    # tokens: questions of the order until their tokens reach `tokens_per_step`
    sequences_per_step: Positive = 112
    questions_per_step: Positive = 4
    tokens_per_step: Positive = 168_000
    epochs: Positive | None = None  # exactly one of epochs and steps
    steps: Positive | None = None
    checkpoints: Positive = 20
    max_tokens: Positive = 4096
    loss_on: Literal["all", "completion"] = "all"
    trainable: Trainable = Trainable()

    @model_validator(mode="after")
    def one_length(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class GRPORecipe(OptimizerRecipe):
    """Group relative policy optimisation with verifiable rewards."""

    method: Literal["grpo"] = "grpo"
    questions_per_step: Positive = 4
    generations: Annotated[int, Field(ge=2)] = 28
    steps: Positive = 571
    checkpoints: Positive = 20
    max_completion_tokens: Positive = 1500
    temperature: Annotated[float, Field(gt=0)] = 0.6
    top_p: Fraction = 1.0
    loss_type: Literal["dr_grpo", "dapo", "grpo", "bnpo"] = "dr_grpo"
    beta: float = 0.0
    epsilon: float = 0.2
    scale_rewards: Literal["group", "batch", "none"] = "none"
    mask_truncated_completions: bool = True
    disable_dropout: bool = True
    accuracy_weight: float = 1.0
    format_weight: float = 0.2  # the paper's text: 0.2 in section 3.1, 0.1 in appendix B.2; the code 0.2
    trainable: Trainable = Trainable()


class RolloutServer(Strict):
    """The processes that write GRPO's completions (scalpel/launch/server.py); without one the ranks write their own."""

    engine: Literal["vllm", "transformers"] = "vllm"
    gpus: Annotated[int, Field(ge=0)] = 1  # of each server node; tensor-parallel
    nodes: Annotated[int, Field(ge=0)] = 0  # nodes of their own; 0: the server shares the first training node
    start_seconds: Positive = 900  # until it must answer
    restarts: Annotated[int, Field(ge=0)] = 3  # a server that died is started again so many times
    memory_fraction: Fraction = 0.9  # of a GPU, for weights and cache


class TrainSettings(Strict):
    """How a training run is carried out; none of it may change what it computes."""

    sequences_per_device: Positive = 64
    gradient_checkpointing: bool = False
    threads: Positive = 1  # of each rank
    keep_state: Positive = 2  # resumable states kept while the run goes on
    ranks: Positive = 1  # training processes on each training node
    nodes: Positive = 1  # training nodes
    engine: Literal["single", "zero2", "fsdp"] = "single"  # how several ranks share the work
    server: RolloutServer | None = None  # for methods that sample
    stop_before_seconds: Positive = 600  # before the job's time limit: save, and be queued again

    @model_validator(mode="after")
    def engine_for_ranks(self):
        if self.engine == "single" and self.ranks * self.nodes > 1:
            raise ValueError("several ranks need `engine: zero2` or `engine: fsdp`")
        return self


# ---------------------------------------------------------------- evaluation and analysis


class TaskRecipe(Strict):
    shots: Annotated[int, Field(ge=0)] = 0
    samples: Positive = 1  # completions per question; the score is their mean (avg@n)
    max_new_tokens: Positive = 4096
    limit: Positive | None = None  # first questions only; None: all
    formulation: Literal["letters", "cloze"] = "letters"  # multiple choice: score letters, or the choices themselves


LIGHTEVAL_TASKS = ("aime24", "math_500", "gsm8k", "gpqa_diamond", "mmlu", "ifeval")
LMEVAL_TASKS = ("mmlu_pro",)
Task = Literal["aime24", "math_500", "gsm8k", "gpqa_diamond", "mmlu", "ifeval", "mmlu_pro"]


class EvaluationRecipe(Strict):
    tasks: dict[Task, TaskRecipe]
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_p: Fraction = 0.95
    seed: int = 42


class EvaluationSettings(Strict):
    batch_size: Positive = 64
    threads: Positive = 1


EvaluationFile = Literal[
    "aime24", "math_500", "gsm8k_train", "gsm8k", "gpqa_diamond", "mmlu_dev", "mmlu", "ifeval",
    "mmlu_pro_dev", "mmlu_pro",
]  # fmt: skip


class EvaluationFiles(Strict):
    """Where the questions come from: `toy`, or parquet files with the public datasets' own columns.

    One file per key; keys name dataset and split. A task whose files are absent cannot be run.
    """

    kind: Literal["toy", "files"] = "toy"
    files: dict[EvaluationFile, Path | HubDataset] = {}


class KLRecipe(Strict):
    """KL(base || checkpoint) on one dataset's problems and solutions, rendered with the chat template."""

    dataset: Literal["math_500"] = "math_500"
    prompts: Positive | None = None  # first questions only; None: all
    max_tokens: Positive = 4096


class KLSettings(Strict):
    chunk: Positive = 512  # positions whose full-vocabulary log-probabilities are held at once
    batch_tokens: Positive = 4096
    threads: Positive = 1


# ---------------------------------------------------------------- scale, study, config


class StageResources(Strict):
    """What Snakemake reserves for one job of a stage."""

    threads: Positive = 1
    mem_mb: Positive = 4000
    runtime: Positive = 60  # minutes
    gpus: Annotated[int, Field(ge=0)] = 0


STAGES = (
    "fetch", "toy", "base", "evaluation_data", "data", "order", "train", "evaluate", "kl", "weight_change",
)  # fmt: skip
Stage = Literal[
    "fetch", "toy", "base", "evaluation_data", "data", "order", "train", "evaluate", "kl", "weight_change"
]  # fmt: skip
FIGURES = ("grpo_rewards", "sft_loss", "benchmarks", "kl", "norms_grpo", "norms_sft", "freezing")
Figure = Literal["grpo_rewards", "sft_loss", "benchmarks", "kl", "norms_grpo", "norms_sft", "freezing"]


class Site(Strict):
    """Where SLURM jobs go (slurm/site.yaml). SCALPEL_ACCOUNT, SCALPEL_GPU_PARTITION, ... in the environment win."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    account: str | None = None  # None: the user's default account
    partition: str | None = None  # of jobs without GPUs; None: the cluster's default
    gpu_partition: str | None = None  # of jobs with GPUs; None: the cluster's default
    qos: str | None = None
    gpu_model: str | None = None  # as the cluster calls it in gres, h100; None: any
    constraint: str | None = None  # of jobs with GPUs
    max_runtime: Positive | None = None  # minutes; a retried job asks for more time, up to this
    max_mem_mb: Positive | None = None  # likewise


class Scale(Strict):
    """Model, data, sizes and resources; never the shape of the DAG (workflow/scales/*.yaml)."""

    description: str
    model: Model
    source: Source
    world: ToyWorldRecipe = ToyWorldRecipe()
    filter: FilterRecipe = FilterRecipe()
    order: OrderRecipe = OrderRecipe()
    methods: dict[Literal["grpo", "sft"], dict[str, Any]] = {}  # defaults of every run of a method
    runs: dict[str, dict[str, Any]] = {}  # what this scale gives single runs
    evaluation: EvaluationRecipe
    evaluation_files: EvaluationFiles = EvaluationFiles()
    evaluation_shards: Positive = 1  # jobs per run, each with its share of the checkpoints
    kl: KLRecipe = KLRecipe()
    train_settings: TrainSettings = TrainSettings()
    evaluation_settings: EvaluationSettings = EvaluationSettings()
    kl_settings: KLSettings = KLSettings()
    resources: dict[Stage, StageResources] = {}


class Study(Strict):
    """Runs to compare and figures to draw (workflow/studies/*.yaml)."""

    title: str
    runs: dict[str, dict[str, Any]]
    figures: dict[Figure, dict[str, Any]]
    published: str | None = None  # a file of workflow/published


class UserConfig(Strict):
    """config.yaml: what to run, and what to change about it."""

    scale: str = "laptop"
    studies: list[str] = ["scalpel_vs_hammer"]
    overrides: dict[str, Any] = {}  # laid over the scale, key by key
    runs: dict[str, dict[str, Any]] = {}  # laid over single runs, key by key


class Config(Strict):
    """Everything validated: what scalpel/plan.py plans from."""

    scale_name: str
    scale: Scale
    studies: dict[str, Study]
    runs: dict[str, Annotated[SFTRecipe | GRPORecipe, Field(discriminator="method")]]


# ---------------------------------------------------------------- loading


def load(raw: dict, workflow: Path) -> Config:
    """Config of a raw mapping (config.yaml merged with --config) and the scale and study files of `workflow`.

    Raises UserError with one sentence for the first thing that is wrong.
    """
    user = _validate(UserConfig, raw, "config.yaml")
    scale_file = _named_file(workflow / "scales", user.scale, "config.yaml: scale")
    scale_raw = _read_yaml(scale_file)
    scale = _validate(Scale, _merge(scale_raw, user.overrides), f"{scale_file.name} with config.yaml's overrides")
    if not user.studies:
        raise UserError("config.yaml: studies is empty; name at least one of workflow/studies.")
    studies = {}
    for name in user.studies:
        study_file = _named_file(workflow / "studies", name, "config.yaml: studies")
        studies[name] = _validate(Study, _read_yaml(study_file), study_file.name)
    known = {run for study in studies.values() for run in study.runs}
    for where, given in (("config.yaml: runs", user.runs), (f"{scale_file.name}: runs", scale.runs)):
        for run in given:
            if run not in known:
                raise UserError(f"{where}: no run is called {run!r}{_nearest(run, known)}.")
    runs = {}
    for study_name, study in studies.items():
        for run, options in study.runs.items():
            recipe = _run_recipe(run, options, scale, user)
            if run in runs and runs[run] != recipe:
                raise UserError(
                    f"{study_name}.yaml: run {run!r} stands in another study with other options; rename one."
                )
            runs[run] = recipe
    if scale.evaluation_files.kind == "files" and "math_500" not in scale.evaluation_files.files:
        raise UserError(f"{scale_file.name}: evaluation_files needs math_500, whose questions the KL stage uses.")
    return Config(scale_name=user.scale, scale=scale, studies=studies, runs=runs)


def freeze(config: Config) -> str:
    """JSON text from which `thaw` makes the same Config, whatever has become of the files it was loaded from."""
    return config.model_dump_json(indent=1)


def thaw(path: Path | str) -> Config:
    try:
        return Config.model_validate_json(Path(path).read_text())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path} is missing or damaged ({type(error).__name__}); start snakemake again.") from None


def load_site(path: Path, environment: Mapping[str, str]) -> Site:
    """slurm/site.yaml with what SCALPEL_<FIELD> in the environment says instead; an empty value means none."""
    raw = _read_yaml(path)
    for field in Site.model_fields:
        name = f"SCALPEL_{field.upper()}"
        if name in environment:
            raw[field] = environment[name] or None
    return _validate(Site, raw, "slurm/site.yaml")


def _run_recipe(run: str, options: dict, scale: Scale, user: UserConfig) -> SFTRecipe | GRPORecipe:
    method = options.get("method")
    if method not in METHODS:
        raise UserError(f"run {run!r}: method {method!r} is not known{_nearest(str(method), METHODS)}.")
    merged: dict = {}
    for layer in (scale.methods.get(method, {}), options, scale.runs.get(run, {}), user.runs.get(run, {})):
        if "epochs" in layer:
            merged.pop("steps", None)
        if "steps" in layer:
            merged.pop("epochs", None)
        merged = _merge(merged, layer)
    return _validate({"sft": SFTRecipe, "grpo": GRPORecipe}[method], merged, f"run {run!r}")


def _merge(below: dict, above: dict) -> dict:
    """`above` laid over `below`, mappings key by key; a mapping whose `kind` changes is replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both and value.get("kind", old.get("kind")) == old.get("kind") else value
    return merged


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{path}: not valid YAML{f' in line {mark.line + 1}' if mark else ''}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping of keys to values.")
    return content


def _named_file(folder: Path, name: str, where: str) -> Path:
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"{where}: no {folder.name[:-1]} is called {name!r}{_nearest(name, names)}.")
    return folder / f"{name}.yaml"


def _nearest(word: str, valid) -> str:
    """``; did you mean X?`` or the list of what there is."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(map(str, valid)))}"


def _validate(model: type[BaseModel], raw: Any, where: str):
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        field = ".".join(path) or "the whole"
        if first["type"] == "extra_forbidden":
            valid = _fields_at(model, path[:-1])
            raise UserError(f"{where}: unknown key {field!r}{_nearest(path[-1], valid)}.") from None
        if path and path[-1] == "[key]":  # a mapping with a fixed set of keys
            expected = first.get("ctx", {}).get("expected", "")
            valid = [word.strip("' ") for word in expected.replace(" or ", ",").split(",")]
            key = str(first["input"])
            raise UserError(f"{where}: unknown key {'.'.join([*path[:-2], key])!r}{_nearest(key, valid)}.") from None
        message = first["msg"].removeprefix("Value error, ")
        given = f", not {first['input']!r}" if isinstance(first["input"], (str, int, float, bool, type(None))) else ""
        raise UserError(f"{where}: {field}: {message[0].lower() + message[1:]}{given}.") from None


def _fields_at(model: Any, path: list[str]) -> list[str]:
    """Names of the fields of the model that `path` leads to; union tags and keys of mappings are passed over."""
    models = [model]
    for part in path:
        following: list = []
        for candidate in models:
            fields = getattr(candidate, "model_fields", {})
            if part in fields:
                following += _models_in(fields[part].annotation)
        models = following or models
        tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].annotation == Literal[part]]
        models = tagged or models
    return sorted({name for candidate in models for name in candidate.model_fields})


def _models_in(annotation: Any) -> list:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
