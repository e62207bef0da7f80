"""The checkpoints a training run left, by index and step."""

import json
from pathlib import Path
from typing import NamedTuple

from scalpel.errors import UserError


class Checkpoint(NamedTuple):
    index: int  # 1, 2, ...
    step: int  # optimizer steps taken
    path: Path  # a directory that from_pretrained reads


def checkpoints(run: Path) -> list[Checkpoint]:
    """All checkpoints of a finished training run, in order; UserError when the list is damaged."""
    path = run / "checkpoints.json"
    try:
        return [Checkpoint(item["index"], item["step"], run / item["path"]) for item in json.loads(path.read_text())]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{path} is missing or damaged; delete {run} and train again.") from None
