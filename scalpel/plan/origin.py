"""What base models and question sets are: made by the toy world here, or somebody's, and then whose.

Read from the steps, never from the scale's name: any scale takes a model or a file of the user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from scalpel.artifact.step import Step
from scalpel.plan.model import Entry

SHORT = 12  # digits of a commit or a sha256 that are shown
TOY_MODEL = "a small model trained from nothing in a generated world"
TOY_QUESTIONS = "generated toy questions"


class Origin(NamedTuple):
    """toy: whether it is the toy world's. what: it in words."""

    toy: bool
    what: str


def of_model(base: Step) -> Origin:
    """Of a step of stage base."""
    if base.recipe.get("kind") == "toy":
        return Origin(True, TOY_MODEL)
    if "fetch" in base.inputs:
        return Origin(False, _fetched(base.inputs["fetch"].recipe))
    return Origin(False, f"the local model {base.name}")


def of_questions(step: Step) -> Origin:
    """Of a step of stage questions: its files by name and the first digits of their sha256."""
    if "toy" in step.inputs:
        return Origin(True, TOY_QUESTIONS)
    paths = step.settings.get("paths", {})
    files = [
        f"{Path(paths[role]).name if role in paths else role} (sha256 {sha256[:SHORT]})"
        for role, sha256 in step.recipe.get("sha256", {}).items()
    ]
    files += [_fetched(other.recipe) for role, other in step.inputs.items() if role.startswith("fetch/")]
    task = f"task {step.recipe['task']} of lm-eval" if step.recipe["format"] == "lm_eval" else ""
    return Origin(False, ", ".join([task, *files] if task else files))


def of_study(entries: Iterable[Entry]) -> dict[str, Any]:
    """What a study's report says of them: base models and question sets by name, each {toy, what}, and `rows`, whether
    some of the rows that are trained on are the toy world's."""
    models: dict[str, dict] = {}
    questions: dict[str, dict] = {}
    rows = False
    for entry in entries:
        if entry.stage == "base":
            models[entry.step.name] = of_model(entry.step)._asdict()
        rows = rows or (entry.stage == "data" and entry.step.recipe["source"]["kind"] == "toy")
        for role, other in entry.step.inputs.items():
            if other.stage == "questions" and entry.stage in ("evaluate", "kl"):
                name = role.partition("/")[2] or entry.part
                questions.setdefault(name, of_questions(other)._asdict())
    return {"models": models, "questions": questions, "rows": rows}


def _fetched(recipe: dict) -> str:
    """A repository's name and commit, and the file where it is one."""
    file = f", {Path(recipe['path']).name} (sha256 {recipe['sha256'][:SHORT]})" if "sha256" in recipe else ""
    return f"{recipe['repo']} at {recipe['revision'][:SHORT]}{file}" if recipe.get("revision") else recipe["repo"]
