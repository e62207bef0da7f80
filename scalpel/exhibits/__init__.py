"""Figures and tables: one file of this folder, or one of the user's own, for each kind.

An exhibit's file declares, at its top level,

* ``READS``: the stages whose results it shows, e.g. ``("kl",)``;
* ``table(results, options)``: a pandas frame of the data shown, saved as csv; results is a Results of
  scalpel/exhibits/results.py. A column ``<name> ±`` holds the standard errors of the column ``<name>``;
* ``draw(frame, options, style)``, for figures: a matplotlib Figure of that frame and nothing else; style is a Style of
  scalpel/exhibits/style.py;
* ``Options``, if it takes options of its own: a subclass of ExhibitOptions;
* ``PUBLISHED``, if it shows published numbers (``results.published``): which sections of the study's file, as a tuple
  (scalpel/published.py), or True for all of them;
* ``CODE``, if it shows what other code decides: those files, relative to scalpel/, so that a change draws it again.

The plan imports these files, so torch, pandas, matplotlib and seaborn are imported inside the functions.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from scalpel.config.load import nearest, validated
from scalpel.errors import UserError
from scalpel.exhibits.options import ExhibitOptions
from scalpel.stages import STAGES

HERE = Path(__file__).parent
SHARED = (  # modules that are no kind of exhibit
    "__init__", "axis", "beside", "drawing", "embedded", "files", "options", "record", "render", "result", "results",
    "spent", "style", "uncertainty",
)  # fmt: skip
SHARED_FILES = [HERE / f"{name}.py" for name in SHARED] + [HERE.parent / "cost" / f for f in ("flops.py", "shape.py")]
SUFFIXES = {"figures": ("pdf", "png", "svg", "csv"), "tables": ("csv",)}


@dataclass(frozen=True)
class Kind:
    """One kind of exhibit. name: of this folder's file, or the path of the user's; code: hash of what draws it."""

    name: str
    module: ModuleType
    code: str

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.module.READS)

    def of_published(self, numbers: dict) -> dict:
        """The part of a study's published numbers that it shows; empty when it shows none."""
        wanted = getattr(self.module, "PUBLISHED", ())
        return numbers if wanted is True else {name: numbers[name] for name in wanted or () if name in numbers}

    @property
    def folder(self) -> str:
        return "figures" if hasattr(self.module, "draw") else "tables"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return SUFFIXES[self.folder]

    def options(self, raw: dict[str, Any], where: str) -> ExhibitOptions:
        """Validated options; UserError that names the place `where`, the key and the nearest valid one."""
        return validated(getattr(self.module, "Options", ExhibitOptions), raw, where)


def kinds() -> list[str]:
    """The kinds of this folder."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in SHARED)


def find(name: str, root: Path, where: str) -> Kind:
    """The kind of this name, or of the user's file `name`, relative to `root`; UserError when there is none."""
    if name.endswith(".py"):
        path = root / name
        if not path.is_file():
            raise UserError(f"{where}: kind: {path} does not exist; give the path of an exhibit's file.")
        module = _load(path, where)
    else:
        if name not in kinds():
            raise UserError(f"{where}: no exhibit is named {name!r}{nearest(name, kinds())}.")
        path, module = HERE / f"{name}.py", importlib.import_module(f"scalpel.exhibits.{name}")
    reads = getattr(module, "READS", None)
    if not isinstance(reads, tuple) or not callable(getattr(module, "table", None)):
        raise UserError(f"{where}: {path} must define READS, a tuple of stages, and table(results, options).")
    unknown = [stage for stage in reads if stage not in STAGES]
    if unknown:
        raise UserError(f"{where}: {path}: READS names {unknown[0]!r}{nearest(unknown[0], STAGES)}.")
    return Kind(name, module, _code(path, *SHARED_FILES, *(HERE.parent / file for file in getattr(module, "CODE", ()))))


def _load(path: Path, where: str) -> ModuleType:
    key = f"scalpel_exhibit_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{where}: {path} cannot be imported ({type(error).__name__}: {error}).") from None
    sys.modules[key] = module
    return module


def report_code() -> str:
    """Hash of what writes the report: scalpel/report, scalpel/claims, known bugs, rivals, what exhibits share, and whom
    to cite."""
    folders = [HERE.parent / "report", HERE.parent / "claims"]
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".jinja", ".css"))
    files += [HERE.parent / "audit" / "known.py", HERE / "rivals.py", HERE.parents[1] / "CITATION.cff"]
    return _code(*files, *SHARED_FILES)


def _code(*paths: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        if path.is_file():
            total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]
