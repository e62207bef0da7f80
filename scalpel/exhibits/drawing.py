"""The recipe of an exhibit or report: opened and checked, and the files it asks for put in place.

The record beside the files (scalpel/exhibits/record.py) is removed first and written last: killed at any moment, the
program leaves files without a record, never a record that other files belong to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.disk import disk_errors
from scalpel.artifact.files import MANIFEST, below, read_json, results_of, sweep, write_atomically
from scalpel.artifact.provenance import git_commit
from scalpel.errors import FINAL, UserError
from scalpel.exhibits import record


class Opened(NamedTuple):
    """A recipe file (scalpel/plan/model.py, Drawing.record)."""

    path: Path
    results: Path  # the directory that all its other paths, ``results/...``, lie below
    study: str
    name: str
    digest: str
    recipe: dict
    entries: list[dict]
    files: list[str]
    record: str
    shows: list[str]  # directories of results, and records of exhibits

    def place(self, recorded: str) -> Path:
        """Where a path of the recipe lies."""
        return below(self.results, recorded)

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
        sys.exit(f"usage: python -m scripts.{module} results/configs/exhibits/<study>.<name>-<digest>.json")
    path = Path(sys.argv[1])
    try:
        with disk_errors(results_of(path, 3)):
            show(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FINAL)


def opened(path: Path) -> Opened:
    """The recipe file at `path`; UserError when it is damaged or a result it names is not finished."""
    content = read_json(path)
    try:
        names = ("study", "name", "digest", "recipe", "entries", "files", "record", "shows")
        drawing = Opened(path, results_of(path, 3), **{field: content[field] for field in names})
    except KeyError as missing:
        raise UserError(f"{path} lacks {missing}; delete it and run snakemake again.") from None
    if path.name != f"{drawing.study}.{drawing.name}-{drawing.digest}.json":
        raise UserError(f"{path} does not hold the recipe its name says; delete it and run snakemake again.")
    for shown in drawing.shows:
        place = drawing.place(shown)
        if not (place if place.suffix == ".json" else place / MANIFEST).is_file():
            raise UserError(f"{drawing.name} shows {shown}, which is not finished; run snakemake for it.")
    return drawing


def put(drawing: Opened, content: dict[str, bytes]) -> None:
    """Write the drawing's files and their record. content: by name, one for each of its files."""
    files, beside = [drawing.place(name) for name in drawing.files], drawing.place(drawing.record)
    beside.unlink(missing_ok=True)
    sweep(beside.parent)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content[file.name])
    about = drawing.provenance() | {"recipe": drawing.recipe}
    record.write(beside, about, files, drawing.shows, drawing.results)
