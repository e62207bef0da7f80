"""A result to be made: its identity, what it is made from, and recipe.json, which holds both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from scalpel.artifact.files import MANIFEST, RECIPE, write_atomically
from scalpel.artifact.identity import digest_of


@dataclass(frozen=True, eq=False)
class Step:
    """One result to be made.

    inputs: steps by role, part of its identity. gates: steps by role that must be finished and are not part of it.
    settings: how the work is carried out, not part of it either.
    """

    stage: str
    name: str
    version: int
    recipe: dict
    inputs: dict[str, Step] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    gates: dict[str, Step] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        cached = self.__dict__.get("_digest")
        if cached is None:
            digests = {role: step.digest for role, step in self.inputs.items()}
            cached = digest_of(self.stage, self.version, self.recipe, digests)
            object.__setattr__(self, "_digest", cached)
        return cached

    @property
    def directory(self) -> str:
        """Relative to the working directory of the workflow."""
        return f"results/{self.stage}/{self.name}-{self.digest}"

    @property
    def manifest(self) -> str:
        return f"{self.directory}/{MANIFEST}"

    def finished(self, root: Path) -> bool:
        """Whether its manifest lies below `root`."""
        return (root / self.manifest).is_file()

    def record(self) -> dict:
        """What recipe.json holds."""
        return {
            "stage": self.stage,
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "recipe": self.recipe,
            "inputs": {role: {"digest": s.digest, "directory": s.directory} for role, s in self.inputs.items()},
            "gates": {role: {"digest": s.digest, "directory": s.directory} for role, s in self.gates.items()},
            "settings": self.settings,
        }


def record_recipe(step: Step, root: Path) -> None:
    """Write recipe.json unless an equal one stands there; that of a finished result only where an input that it names
    is gone, since the same input may be made again under another run's name."""
    directory = root / step.directory
    path = directory / RECIPE
    if path.exists() and (directory / MANIFEST).exists() and _inputs_lie_there(path, root):
        return
    text = json.dumps(step.record(), indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text() != text:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def _inputs_lie_there(path: Path, root: Path) -> bool:
    """Whether the directories of the inputs that a recipe.json names exist; a damaged one is another's to name."""
    try:
        return all((root / item["directory"]).is_dir() for item in json.loads(path.read_text())["inputs"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True
