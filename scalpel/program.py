"""What the programs of scripts/ that people call by hand have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from scalpel.artifact.files import ROOT
from scalpel.config.load import load, read_yaml
from scalpel.config.study import Config
from scalpel.errors import UserError, status_of
from scalpel.plan import Plan

WORKFLOW = ROOT / "workflow"


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a program's main and exit with what it returns; a UserError is one sentence and its exit status."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(status_of(error))


def configured(scale: str | None = None) -> Config:
    """What config.yaml of this directory says (without one, the defaults), at another scale if one is named.

    Raises UserError with one sentence for the first thing that is wrong.
    """
    path = Path("config.yaml")
    raw = read_yaml(path) if path.is_file() else {}
    return load(raw | ({"scale": scale} if scale else {}), WORKFLOW)


def plans_of_all_scales(root: Path) -> tuple[list[Plan], list[str]]:
    """What config.yaml plans at each scale, and a sentence for each that it cannot be planned at."""
    found, refused = [], []
    for path in sorted((WORKFLOW / "scales").glob("*.yaml")):
        try:
            found.append(Plan(configured(path.stem), WORKFLOW, root))
        except UserError as error:
            refused.append(f"what scale {path.stem} made counts as unused, for config.yaml does not fit it: {error}")
    return found, refused
