"""What is decided: one module per study, named by the study's `claims`. Only here are runs known by name.

A module of claims holds CLAIMS, a tuple of Claim (scalpel/claims/judge.py), and PUBLISHED_AS: our names of published
runs where these have others. The plan imports it, so it imports neither pandas nor torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from scalpel.config.load import nearest
from scalpel.errors import UserError

if TYPE_CHECKING:
    from scalpel.claims.judge import Claim

SHARED = ("__init__", "estimate", "evidence", "judge", "measures")  # modules that are no study's


def module(name: str, where: str) -> ModuleType:
    """The module of this name; UserError that names the place `where` and the nearest module when there is none."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SHARED)
    if name not in names:
        raise UserError(f"{where}: no module of scalpel/claims is named {name!r}{nearest(name, names)}.")
    return importlib.import_module(f"scalpel.claims.{name}")


def find(name: str, where: str) -> tuple[Claim, ...]:
    """The claims of a module."""
    return module(name, where).CLAIMS
