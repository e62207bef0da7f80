"""The recipe file of an exhibit or report: opened and checked, and the files it asks for put in place.

A recipe file is there if and only if the files show that very content. It is written before the program starts, so the
program first removes what is there of older content: the files, then the other recipe files, and only then writes.
Killed at any moment, it leaves files missing, never older ones under a newer recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import MANIFEST, read_json, write_atomically
from scalpel.artifact.provenance import git_commit
from scalpel.errors import FINAL, UserError


class Opened(NamedTuple):
    """A recipe file (scalpel/plan/model.py, Drawing.record)."""

    path: Path
    root: Path  # to which all its other paths are relative
    study: str
    name: str
    digest: str
    recipe: dict
    entries: list[dict]
    files: list[str]

    def provenance(self) -> dict:
        """What is embedded in each file."""
        whose = {"study": self.study, "name": self.name, "digest": self.digest}
        return whose | {"commit": git_commit(), "entries": self.entries}

    def check_code(self, code: str) -> None:
        """UserError when the programs have changed since the recipe was written."""
        if code != self.recipe["code"]:
            raise UserError(f"{self.path}: the code that shows {self.name} has changed since; start snakemake again.")


def run(show: Callable[[Path], None]) -> None:
    """Main of a program that takes one recipe file; exit status FINAL for what the user can put right."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        module = Path(sys.argv[0]).stem
        sys.exit(f"usage: python -m scripts.{module} results/<folder>/<study>/recipes/<name>-<digest>.json")
    try:
        show(Path(sys.argv[1]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FINAL)


def opened(path: Path) -> Opened:
    """The recipe file at `path`; UserError when it is damaged or a result it names is not finished."""
    content = read_json(path)
    root = path.resolve().parents[4]
    try:
        fields = {field: content[field] for field in ("study", "name", "digest", "recipe", "entries", "files")}
        directories = [directory for entry in content["entries"] for directory in (entry["step"], *entry["chain"])]
    except (KeyError, TypeError) as missing:
        raise UserError(f"{path} lacks {missing}; delete it and run snakemake again.") from None
    drawing = Opened(path, root, **fields)
    if path.name != f"{drawing.name}-{drawing.digest}.json":
        raise UserError(f"{path} does not hold the recipe its name says; delete it and run snakemake again.")
    for directory in directories:
        if not (root / directory / MANIFEST).is_file():
            raise UserError(f"{drawing.name} shows {directory}, which is not finished; run snakemake for it.")
    return drawing


def put(drawing: Opened, content: dict[str, bytes]) -> None:
    """Write the drawing's files. content: by suffix, one for each of its files."""
    files = [drawing.root / name for name in drawing.files]
    for file in files:
        file.unlink(missing_ok=True)
    for recipe in drawing.path.parent.glob(f"{drawing.name}-{'[0-9a-f]' * 12}.json"):
        if recipe.name != drawing.path.name:
            recipe.unlink(missing_ok=True)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content[file.suffix[1:]])
