"""The section on provenance: when, where, with what and in how long each result was made."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import MANIFEST, PROVENANCE, below
from scalpel.errors import UserError
from scalpel.exhibits.result import Result
from scalpel.progress import clock
from scalpel.report.tables import Column, Table, link

COLUMNS = ("result", "begun (UTC)", "took", "commit", "machine")


class Made(NamedTuple):
    """dates: the first and last day. took: of all results together. packages: ``name version``, the same for all; of
    others both versions. damaged: results that do not say how they were made."""

    results: Table
    dates: list[str]
    took: str
    packages: list[str]
    damaged: list[str]


def made_of(result: Result) -> list[Path]:
    """The directories of a result and of what it was made of: the run before it, its checkpoints."""
    found = [*result.chain, result.step]
    try:
        checkpoints = json.loads((result.step / MANIFEST).read_text())["inputs"]["checkpoints"]["directory"]
        found.insert(-1, below(result.step.parents[1], checkpoints))
    except (OSError, ValueError, KeyError, TypeError, UserError):
        pass  # it has none, or is damaged, which is said of it
    return found


def made(steps: Sequence[Path], page: Path | None = None) -> Made:
    """Of result directories, each once, in the order in which they were made; page: the folder that links begin at."""
    found, damaged = [], []
    for step in dict.fromkeys(steps):
        try:
            one = json.loads((step / PROVENANCE).read_text())
            begun = datetime.datetime.fromtimestamp(float(one["started"]), datetime.UTC)
            found.append((begun, float(one["seconds"]), f"{step.parent.name}/{step.name}", step, one))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            damaged.append(f"{step.parent.name}/{step.name}")
    found.sort(key=lambda result: result[:3])
    rows = []
    for begun, seconds, name, step, one in found:
        commit = link(step / PROVENANCE, page, _short(one.get("commit")))
        when, host = f"{begun:%Y-%m-%d %H:%M}", one.get("host") or ""
        rows.append((link(step, page, name), when, clock(seconds), commit, host))
    versions: dict[str, dict[str, None]] = {}
    for *_, one in found:
        for package, version in {"Python": one.get("python"), **(one.get("packages") or {})}.items():
            versions.setdefault(package, {})[str(version)] = None
    return Made(
        Table([Column(name, name == "took") for name in COLUMNS], rows),
        list(dict.fromkeys(f"{begun:%Y-%m-%d}" for begun in ([found[0][0], found[-1][0]] if found else []))),
        clock(sum(seconds for _, seconds, *_ in found)),
        [f"{package} {' and '.join(of)}" for package, of in versions.items()],
        damaged,
    )


def _short(commit: str | None) -> str:
    """Twelve digits, and the + of code that differed from the commit."""
    return commit[:12] + "+" * commit.endswith("+") if commit else "unknown"
