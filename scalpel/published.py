"""Published numbers that stand beside ours: a YAML file of workflow/published, and the tables that it names.

    trajectories:
      models: {<run>: <model>}       # our name of a run -> the tables' name of it
      kl: <file>.csv                 # columns model, checkpoint (optimizer step), value
      weight_change: <file>.csv      # columns model, checkpoint, module (projection), layer, value

What is read is JSON, so that it can stand in a recipe: `kl` and `weight_change` are filled in from the tables.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from scalpel.config.load import read_yaml
from scalpel.errors import UserError

COLUMNS = {"kl": ("model", "checkpoint", "value"),
           "weight_change": ("model", "checkpoint", "module", "layer", "value")}  # fmt: skip


def read(path: Path) -> dict:
    """The content of a file of published numbers.

    Of `trajectories` it makes kl: run -> {steps, values}; weight_change: run -> {projection: values of the last
    checkpoint by layer}; and weight_change_trajectories: run -> {steps, projection: a list by layer for each step}.
    Raises UserError naming the file, and the line of a table, that cannot be read.
    """
    content = read_yaml(path)
    named = content.get("trajectories")
    if not named:
        return content
    if not isinstance(named, dict) or not isinstance(named.get("models"), dict):
        raise UserError(f"{path}: trajectories: give `models: {{<run>: <model of the tables>}}` and the tables' files.")
    runs = {str(model): run for run, model in named["models"].items()}
    if "kl" in named:
        content["kl"] = _kl(path.parent / named["kl"], runs)
    if "weight_change" in named:
        table = path.parent / named["weight_change"]
        written = table.stat().st_mtime_ns if table.is_file() else 0
        courses = _weight_change(table, tuple(runs.items()), written)
        content["weight_change_trajectories"] = courses
        content["weight_change"] = {
            run: {name: steps[-1] for name, steps in course.items() if name != "steps"}
            for run, course in courses.items()
        }
    return content


def _kl(path: Path, runs: dict[str, str]) -> dict:
    found: dict[str, dict[int, float]] = {}
    for model, step, value in _rows(path, COLUMNS["kl"]):
        if model in runs:
            found.setdefault(runs[model], {})[int(step)] = float(value)
    return {run: {"steps": sorted(found[run]), "values": [found[run][step] for step in sorted(found[run])]}
            for run in runs.values() if run in found}  # fmt: skip


@lru_cache(maxsize=4)  # tens of thousands of rows, which every plan of a process needs
def _weight_change(path: Path, named: tuple[tuple[str, str], ...], written: int) -> dict:
    """`written` is when the table was: another time, another table."""
    runs = dict(named)
    found: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    for model, step, module, layer, value in _rows(path, COLUMNS["weight_change"]):
        if model in runs:
            steps: Any = found.setdefault(runs[model], {}).setdefault(module, {})
            steps.setdefault(int(step), {})[int(layer)] = float(value)
    courses: dict[str, dict[str, Any]] = {}
    for run in (run for run in runs.values() if run in found):
        steps = sorted(next(iter(found[run].values())))
        courses[run] = {"steps": steps} | {
            module: [[layers[layer] for layer in sorted(layers)] for layers in map(by_step.__getitem__, steps)]
            for module, by_step in found[run].items()
        }
    return courses


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """The rows below the header; lines that begin with # are comments."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); correct `trajectories`.") from None
    rows = csv.reader(line for _, line in lines)
    if tuple(next(rows, ())) != columns:
        raise UserError(f"{path}: its columns must be {', '.join(columns)}.")
    for (number, _), row in zip(lines[1:], rows, strict=True):
        try:
            float(row[-1]), [int(row[i]) for i, name in enumerate(columns) if name in ("checkpoint", "layer")]
        except (ValueError, IndexError):
            raise UserError(f"{path}: line {number} is no row of {', '.join(columns)}.") from None
        if len(row) != len(columns):
            raise UserError(f"{path}: line {number} has {len(row)} values for {len(columns)} columns.")
        yield row
