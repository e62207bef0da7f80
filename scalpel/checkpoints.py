"""The checkpoints that a trained or given run left, by index and step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.checking import checked
from scalpel.errors import UserError


class Checkpoint(NamedTuple):
    index: int  # type: ignore[assignment]  # 1, 2, ...
    step: int  # optimizer steps taken
    path: Path  # a directory that from_pretrained reads


def checkpoints(run: Path) -> list[Checkpoint]:
    """All checkpoints of a finished run, in order; UserError when the list is damaged."""
    path = checked(run / "checkpoints.json")
    try:
        return [Checkpoint(item["index"], item["step"], run / item["path"]) for item in json.loads(path.read_text())]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{path} is missing or damaged; delete {run} and make it again.") from None


def last_model(inputs: dict[str, Path], role: str = "checkpoints") -> Path:
    """The last checkpoint of the run that is an input under `role`; the base model when there is none."""
    return checkpoints(inputs[role])[-1].path if role in inputs else inputs["base"] / "model"


def reference(inputs: dict[str, Path]) -> Path:
    """The model that checkpoints are compared with: the start's last checkpoint, or the base model."""
    return last_model(inputs, "reference")
