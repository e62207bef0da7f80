"""Finished results in the stages' own layout, of a plan, without running a stage."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from scalpel.artifact.files import read_json
from scalpel.artifact.manifest import seal
from scalpel.artifact.step import Step, freeze_recipe


def finish(step: Step, root: Path, files: dict[str, pd.DataFrame | str]) -> Path:
    """Write a step's files, recipe and manifest, after those of its inputs; returns its directory."""
    freeze_recipe(step, root)
    directory = root / step.directory
    for name, content in files.items():
        if isinstance(content, str):
            (directory / name).write_text(content)
        else:
            content.to_parquet(directory / name, index=False)
    seal(directory, read_json(directory / "recipe.json"), {role: root / i.directory for role, i in step.inputs.items()})
    return directory


def finish_all(plan, root: Path, content) -> None:
    """Finish every step of a plan. content(step, run, seed) -> its files; run and seed are None for shared steps."""
    whose = {e.step.digest: (e.run, e.seed) for entries in plan.entries.values() for e in entries}
    for step in plan.steps.values():
        finish(step, root, content(step, *whose.get(step.digest, (None, None))))


def checkpoints_json(steps) -> str:
    return json.dumps([{"index": i, "step": step, "path": f"checkpoints/{step}"} for i, step in enumerate(steps, 1)])
