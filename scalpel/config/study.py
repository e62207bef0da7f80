"""A study: runs to compare, and what is shown and decided of them (workflow/studies/*.yaml); and config.yaml itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from scalpel.config.models import Given
from scalpel.config.scale import Scale, Setting
from scalpel.config.training import MethodRecipe, Tracking
from scalpel.config.types import Few, Name, NameOrPath, Recipe, Reference, Seed, Strict

if TYPE_CHECKING:
    AnyRecipe = MethodRecipe
else:
    from scalpel.methods import AnyRecipe

Share = Annotated[float, Field(gt=0, lt=1)]


class RunAxes(Strict):
    """Everything about a run beside its method's recipe. Runs are named as <run> of this study or <study>/<run>."""

    model: Name | None = None  # None: that of the run it starts from, else the study's
    dataset: Name | None = None  # None: the study's
    start_from: Reference | None = None  # trains on from that run's last checkpoint
    data_from: Reference | Literal["base"] | None = None  # trains on that model's own verified answers
    # Only questions that these sources answer, too: what makes runs on different answers comparable.
    common_with: tuple[Reference | Literal["base", "traces"], ...] = ()
    steps_of: Name | None = None  # as many optimizer steps as that run of the study
    rate_of: Name | None = None  # that run of the study's learning rate in place of the method's own
    rate_times: Annotated[float, Field(gt=0, le=10**4)] = 1.0  # by which the learning rate is multiplied
    layers_from: Reference | Literal["base"] | None = None  # that model's causal trace names the layers to freeze
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None  # None: the scale's
    evaluated: Few | None = None  # how many checkpoints are evaluated, evenly spaced; None: all
    given: Given | None = None  # checkpoints made elsewhere, in place of training


class RunSpec(RunAxes):
    """One run of a study with everything settled but its inputs."""

    recipe: SerializeAsAny[AnyRecipe] | None = None  # None: given
    seeds: tuple[Seed, ...]

    def described(self) -> dict[str, Any]:
        """The run as the report describes it: its recipe, and its axes where they are given."""
        recipe: dict[str, Any] = self.recipe.model_dump(mode="json") if self.recipe else {}
        axes = self.model_dump(mode="json", exclude={"recipe"})
        if self.given and self.given.chat_template is None:
            axes["given"].pop("chat_template")
        return recipe | {name: value for name, value in axes.items() if value is not None}


class Look(Strict):
    """How a run is shown."""

    label: str | None = None
    color: Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")] | None = None
    marker: Annotated[str, Field(pattern=r"^[ov^<>8sp*hHDdPX]$")] | None = None  # matplotlib's filled ones


class Margins(Strict):
    """What counts as no difference, and the limits that claims name: chosen before a run, never after its results."""

    score: Share = 0.02  # of benchmarks, a share of 1
    modest: Share = 0.10  # a gain or loss above it is not modest, nor slight
    out_of_reach: Share = 0.10  # a benchmark below it is out of reach
    ratio: Annotated[float, Field(gt=1)] = 1.1  # of KL, cost and lengths: factors between 1 / 1.1 and 1.1
    weights: Annotated[float, Field(gt=1)] = 1.05  # of weight change
    much: Annotated[float, Field(gt=1)] = 2.0  # what "much more" is at least, a factor
    reward: Share = 0.05
    spikes: Share = 0.05  # of steps: rare below it
    share: Share = 0.05  # of entries of a matrix, of ranks, of R2, of indirect effects


class Answer(Strict):
    """What the report says first: the question, and the last checkpoints of some runs against the base model."""

    question: str = ""
    runs: Annotated[tuple[Name, ...], Field(max_length=4)] = ()  # empty: the study's first ones
    control: Name | None = None  # the run that could explain their difference away, compared with the first of them
    picture: Name | None = None  # the exhibit that shows it, whose `gain` and `kept` name the tasks; None: the frontier
    equal: Name | None = None  # an exhibit of equal budgets, of which a sentence says who wins; None: no sentence
    bugs: Name | None = None  # an exhibit of kind bug_effect, of which a sentence says what bugs change; None: none


NoneIsEmpty = Annotated[Answer, BeforeValidator(lambda value: {} if value is None else value)]


class StudyFile(Strict):
    """A file of workflow/studies, or one of the user's own."""

    title: str
    extends: NameOrPath | None = (
        None  # a study whose runs, looks, exhibits, claims and published numbers are this one's, too
    )
    runs: dict[Name, dict[str, Any]] = {}
    exhibits: dict[Name, dict[str, Any]] = {}  # figures and tables; each with its kind's options
    looks: dict[Name, Look] = {}  # of runs, and of `base`
    setting: dict[str, Any] = {}  # laid over what the scale gives every study, below what it gives this one
    claims: Name | None = None  # a module of scalpel/claims
    margins: Margins = Margins()  # of the claims
    published: NameOrPath | None = None  # a file of workflow/published, or the path of another
    answer: NoneIsEmpty = Answer()  # the first lines of the report; null: those of no study in particular
    lineage: tuple[str, ...] = ()  # names of the studies it extends, the first one first, and its own


class Study(Strict):
    """A study at a scale."""

    title: str
    setting: Setting
    runs: dict[Name, RunSpec]
    exhibits: dict[Name, dict[str, Any]]
    looks: dict[Name, Look]
    claims: Name | None
    margins: Margins
    published: str | None
    answer: Answer = Answer()
    papers: dict[Name, dict[str, Any]] = {}  # run -> how the paper's scale describes it


class Overlay(Strict):
    """A file of workflow/as_published: values of a paper's text, or of its code, where the two disagree."""

    scale: Name  # the one it is laid over
    overrides: dict[str, Any]


class UserConfig(Strict):
    """config.yaml: what to run, and what to change about it."""

    scale: Name = "laptop"
    studies: Annotated[list[NameOrPath], Field(min_length=1)] = ["scalpel_vs_hammer"]  # names, or paths of .yaml files
    as_published: Name | None = None  # a file of workflow/as_published, laid over its scale before `overrides`
    tracking: Tracking | None = None  # where training runs report live, in place of train_settings.tracking
    overrides: dict[str, Any] = {}  # laid over the scale, key by key; null removes an entry
    runs: dict[
        Reference, dict[str, Any]
    ] = {}  # laid over single runs, key by key; one with `method` or `given` may be new


class Config(Strict):
    """Everything validated: what scalpel/plan.py plans from."""

    scale_name: str
    scale: Scale
    studies: dict[Name, Study]


__all__ = [
    "Config",
    "Look",
    "Margins",
    "MethodRecipe",
    "Recipe",
    "RunAxes",
    "RunSpec",
    "Study",
    "StudyFile",
    "UserConfig",
]
