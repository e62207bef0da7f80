"""What all configuration classes share: strictness, bounded numbers, names, and recipes that can grow.

A *recipe* is what a result's ``recipe.json`` holds: only what decides its content. Where and how the work is carried
out (paths, devices, threads, micro-batches) stands in classes named *Settings and is never part of a digest.

Recipes grow. A field that is added after results exist is declared with `later`, which names, for ever, the value
that means "as before". That value alone is left out of the digest, so no result loses its name; a default that is
changed afterwards enters it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

Positive = Annotated[int, Field(gt=0, le=10**9)]
Tokens = Annotated[int, Field(gt=0, le=2**20)]  # of one text
AtOnce = Annotated[int, Field(gt=0, le=10**6)]  # sequences, positions or tokens computed together
Few = Annotated[int, Field(gt=0, le=10**4)]  # threads, processes, nodes, checkpoints
Whole = Annotated[int, Field(ge=0, le=10**9)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Repository = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]  # owner/name on the hub
Seed = Annotated[int, Field(ge=0, lt=2**32)]

NAME = r"[A-Za-z0-9][A-Za-z0-9_]*"
BASE = "base"  # the word for a study's base model wherever runs are named; no run may be called so
TRACES = "traces"  # the word for a dataset's own answers wherever sources of answers are named; no run either
Name = Annotated[str, Field(pattern=rf"^{NAME}$", max_length=60)]  # of a run, study, model, dataset, question set, task
Reference = Annotated[str, Field(pattern=rf"^({NAME}/)?{NAME}$")]  # a run of this study, or <study>/<run>

AS_BEFORE, UNHASHED = "as_before", "unhashed"


def _possible(path: Any) -> Any:
    if "\0" in str(path) or any(len(part.encode()) > 255 for part in str(path).split("/")) or len(str(path)) > 4000:
        raise ValueError("no file has such a name")
    return path


Location = Annotated[Path, AfterValidator(_possible)]  # of the user's file or directory
NameOrPath = Annotated[str, AfterValidator(_possible)]  # of something of ours by name, or of a file of the user's


class Strict(BaseModel):
    """Unknown keys are errors, numbers are finite, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def later(default: Any, *, as_before: Any, **constraints: Any) -> Any:
    """A recipe's field that came after results existed. `as_before`: the JSON value with which they were made."""
    return Field(default, json_schema_extra={AS_BEFORE: as_before}, **constraints)


def unhashed(default: Any, **constraints: Any) -> Any:
    """A field that stands among a recipe's for the reader's sake and never enters the digest."""
    return Field(default, json_schema_extra={UNHASHED: True}, **constraints)


def marked(model: type[BaseModel], mark: str) -> dict[str, Any]:
    """Field -> what its `later` or `unhashed` says, of the fields declared so."""
    extras = {name: field.json_schema_extra for name, field in model.model_fields.items()}
    return {name: extra[mark] for name, extra in extras.items() if isinstance(extra, dict) and mark in extra}


class Recipe(Strict):
    """Configuration that decides the content of a result."""

    def identity(self) -> dict[str, Any]:
        """The JSON object that enters the digest: all fields but unhashed ones and later ones that are "as before"."""
        return self.model_dump(mode="json", context={"identity": True})

    @classmethod
    def of_identity(cls, recipe: dict[str, Any]) -> Self:
        """The recipe of an `identity`: what it leaves out is "as before", whatever the default is by now."""
        return cls.model_validate(recipe, context={"identity": True})

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo):  # type: ignore[no-untyped-def]
        content = handler(self)
        if (info.context or {}).get("identity"):
            before, unhashed = marked(type(self), AS_BEFORE), marked(type(self), UNHASHED)
            absent = object()
            content = {
                name: value
                for name, value in content.items()
                if name not in unhashed and value != before.get(name, absent)
            }
        return content

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any, info: ValidationInfo) -> Any:
        if isinstance(raw, dict) and (info.context or {}).get("identity"):
            return marked(cls, AS_BEFORE) | raw
        return raw
