"""What a method declares: all a configuration, a plan and a cost estimate need to know, without torch."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from scalpel.config.training import MethodRecipe, TrainSettings
from scalpel.cost.amount import Amount


class RowSizes(NamedTuple):
    """The kept training rows: how many, and mean tokens of a whole conversation (None: unknown) and of a prompt."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    tokens: float | None
    prompt_tokens: float


class Work(NamedTuple):
    """What a whole run puts through the model, in tokens."""

    trained: Amount  # in forward and backward passes
    written: Amount | None = None  # sampled one by one
    scored: Amount | None = None  # in forward passes alone


class Method:
    """A training method's declaration. Subclasses are never instantiated.

    name: as runs name it. Recipe: its fields. version: raised by hand when the meaning of its results changes.
    samples: whether it writes completions while it trains. trainer: the module whose `train` carries it out
    (scalpel/methods/run.py says with what). work: tokens of a whole run of a recipe on rows of these sizes.
    accumulation: micro-batches of each rank in one optimizer step, for so many sequences per device and so many ranks,
    as far as that is known before the rows are.
    """

    name: ClassVar[str]
    Recipe: ClassVar[type[MethodRecipe]]
    version: ClassVar[int] = 1
    samples: ClassVar[bool]
    # Of a resumable state, for each parameter: weight and two moments in float32, and the model's own copy.
    state_bytes: ClassVar[int] = 16
    trainer: ClassVar[str]
    work: ClassVar[staticmethod[[Any, RowSizes], Work]]
    accumulation: ClassVar[staticmethod[[Any, int, int], int]]

    @staticmethod
    def check(recipe: Any, settings: TrainSettings) -> None:
        """UserError when the recipe cannot be carried out by these settings."""

    @staticmethod
    def steps_fed(recipe: Any, rows: int, epochs: int) -> int | None:
        """Optimizer steps that an order of `epochs` times `rows` questions feeds; None when lengths decide."""
        return None
