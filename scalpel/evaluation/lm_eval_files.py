"""The files of an lm-eval task, found without importing lm-eval: its YAML, the code it calls, its data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scalpel.config.data import HubDataset


class TaskFiles(NamedTuple):
    """name: the task's; text: its YAML with includes laid in; code: Python files by name; files: data by split."""

    name: str
    text: str
    code: dict[str, str]
    files: dict[str, Path | HubDataset]


def find(task: str, files: dict[str, Path | HubDataset], where: str) -> TaskFiles:
    raise NotImplementedError
