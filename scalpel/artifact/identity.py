"""What a result is called by: a digest over what decides its content, in canonical JSON."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """JSON text with sorted keys and no blanks; the same for equal values, whatever their order.

    Raises TypeError on anything JSON cannot represent without loss: callables, paths, NaN, non-string keys.
    """
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check(value: Any, where: str) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value} cannot stand in a recipe")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is not a string")
            _check(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    else:
        raise TypeError(f"{where}: {type(value).__name__} cannot stand in a recipe")


def digest_of(stage: str, version: int, recipe: dict, inputs: dict[str, str]) -> str:
    """First 12 hex digits of sha256 over {stage, version, recipe, digests of the inputs by role}."""
    text = canonical({"stage": stage, "version": version, "recipe": recipe, "inputs": inputs})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
