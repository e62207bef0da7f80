"""What a study's YAML may say about any exhibit: what it is called, which runs it shows, and how.

The plan imports this module, so neither torch nor matplotlib is imported here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scalpel.config.types import Reference, Strict

PRINTED = 7.0  # points
Inches = Annotated[float, Field(gt=1, le=40)]


class ExhibitOptions(Strict):
    """Options common to all exhibits; a kind adds its own in a subclass called Options."""

    number: str | None = None  # as the paper calls it: Figure 4
    caption: str = ""
    runs: tuple[Reference, ...] = ()  # runs shown, in this order, <study>/<run> for another study's; empty: all
    title: str | None = None
    width_inches: Inches | None = None
    height_inches: Inches | None = None
    # Of a page of two that it fills: 3.3 or 6.8 inches, with text of 7 points; None: a width of its own, for screens.
    page_columns: Literal[1, 2] | None = None
    font_size: Annotated[float, Field(ge=5, le=24)] = 9.0  # points; where `page_columns` is given, it is 7
    dpi: Annotated[int, Field(ge=50, le=600)] = 160  # of the PNG
    labels: dict[str, str] = Field(default={})  # run -> name in the legend, in place of the study's look
    x: Literal["steps", "questions", "tokens", "flops", "seconds"] = (
        "steps"  # of curves over training, over a chain of runs
    )
    log_y: bool = False  # logarithmic value axis; of curves, never of bars
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.7  # weight of the past in curves of every step

    @model_validator(mode="before")
    @classmethod
    def _of_columns(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("page_columns"):
            if raw.get("width_inches"):
                raise ValueError("give `page_columns` or `width_inches`")
            return {"font_size": PRINTED} | raw
        return raw


class ComparedOptions(ExhibitOptions):
    """Of exhibits that compare checkpoints with a model: the base model, or the one the run started from."""

    reference: Literal["base", "start"] = "base"


class BesideOptions(ComparedOptions):
    """Of exhibits that show a published course, checkpoint by checkpoint, beside ours (scalpel/exhibits/beside.py)."""

    published_as: dict[str, str] = Field(default={})  # run -> the published run beside it; else the one of its own name
    also_published: dict[str, str] = Field(default={})  # published runs that are none of ours -> name in the legend
