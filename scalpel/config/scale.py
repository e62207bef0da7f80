"""A scale: models, data, sizes and resources. It never changes the shape of the DAG (workflow/scales/*.yaml)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from scalpel.config.analysis import KLRecipe, KLSettings, StructureRecipe, TraceRecipe, TraceSettings
from scalpel.config.data import Dataset, GenerateRecipe
from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings, QuestionSet
from scalpel.config.models import Model, ToyWorldRecipe
from scalpel.config.training import TrainSettings
from scalpel.config.types import Few, Name, Positive, Seed, Strict, Whole


class StageResources(Strict):
    """What Snakemake reserves for one job of a stage."""

    threads: Few = 1
    mem_mb: Positive = 4000
    runtime: Positive = 60  # minutes
    gpus: Whole = 0


class GPU(Strict):
    """What the cost estimate computes with. Peaks in FLOP/s, dense: bfloat16 summed in float32, float32 without TF32,
    float64 where it is fastest."""

    name: str = "H100 SXM"
    bfloat16: Annotated[float, Field(gt=0)] = 989e12  # NVIDIA's data sheet, as the two below
    float32: Annotated[float, Field(gt=0)] = 67e12
    float64: Annotated[float, Field(gt=0)] = 67e12


class Setting(Strict):
    """What a scale gives a study. `studies.<study>` of the scale is laid over these fields, key by key."""

    model: Name  # of `models`
    base_evaluated_as: Name | None = None  # of `models`: the same weights with another chat template; None: `model`
    dataset: Name  # of `datasets`
    guard: tuple[Name, ...] = ()  # question sets that no training row may overlap with
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (42,)  # of every run that names none
    epochs: Few = 3  # permutations of the rows in each question order
    methods: dict[str, dict[str, Any]] = {}  # defaults of every run of a method
    runs: dict[Name, dict[str, Any]] = {}  # what this scale gives single runs of the study
    evaluation: EvaluationRecipe
    evaluation_shards: Few = 1  # jobs per run and group, each with its share of the checkpoints
    kl: dict[Name, KLRecipe] = {}  # measures of KL by name; the first is the one shown where one is
    generate: GenerateRecipe = GenerateRecipe()
    trace: TraceRecipe = TraceRecipe()
    structure: StructureRecipe | None = None  # None: the updates' sparsity, rank and spectrum are not measured
    train_settings: TrainSettings = TrainSettings()  # nodes are those of the scale in every study


class Scale(Setting):
    description: str
    models: dict[Name, Model]
    datasets: dict[Name, Dataset]
    questions: dict[Name, QuestionSet] = {}
    world: ToyWorldRecipe = ToyWorldRecipe()
    studies: dict[Name, dict[str, Any]] = {}  # laid over the Setting for one study
    evaluation_settings: EvaluationSettings = EvaluationSettings()
    kl_settings: KLSettings = KLSettings()
    trace_settings: TraceSettings = TraceSettings()
    gpu: GPU = GPU()
    resources: dict[str, StageResources] = {}  # by stage
