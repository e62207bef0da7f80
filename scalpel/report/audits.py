"""The section on the audit: every probe of every audit that the study's runs passed first.

Which audit a run waited for stands in the run's own recipe.json: the stack that draws the page may be another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.checking import checked
from scalpel.artifact.files import MANIFEST, RECIPE, below, read_json
from scalpel.audit.known import versions
from scalpel.exhibits.result import Result
from scalpel.report.tables import NONE, Column, Table, link

COLUMNS = [Column(name) for name in ("Probe", "Measured", "Expected", "Tolerance", "Verdict", "Who has the bug")]


class Audit(NamedTuple):
    """One audit. how: what it was taken on. packages: those it was taken with. runs: that waited for it. probes: None
    where its result was taken away since."""

    name: str
    runs: list[str]
    how: str = ""
    packages: str = ""
    passed: int = 0
    probes: Table | None = None


def audits(trained: Iterable[Result], label: Callable[[str], str], page: Path | None = None) -> list[Audit]:
    """Each audit that trained runs waited for once, in the order of the runs; UserError for one that is damaged.

    page: the folder that links begin at."""
    runs: dict[Path, list[str]] = {}
    for result in trained:
        gates = read_json(result.step / RECIPE).get("gates", {})
        if "audit" in gates:
            step = below(result.step.parents[1], gates["audit"]["directory"])
            runs.setdefault(step, []).append(label(result.run))
    return [_audit(step, list(dict.fromkeys(of)), page) for step, of in runs.items()]


def _audit(step: Path, runs: list[str], page: Path | None) -> Audit:
    if not (step / MANIFEST).is_file():
        return Audit(step.name, runs)
    recorded = read_json(step / RECIPE)
    seal, base = recorded["recipe"]["fingerprint"], recorded.get("inputs", {}).get("base")
    probes = json.loads(checked(step / "audit.json").read_text())
    rows = [
        [
            probe["name"],
            probe["found"],
            probe.get("expected") or NONE,
            probe.get("tolerance") or NONE,
            "passes" if probe["passed"] else "FAILS",
            versions(probe["name"]),
        ]
        for probe in probes
    ]
    how = f"engine {seal['engine']}{', CPU offload' if seal['offload'] else ''}, {seal['ranks']} "
    how += f"rank{'s' if seal['ranks'] > 1 else ''}, {_many(seal['accumulation'])} a step of each"
    how += f", {seal['rollouts']['method']}" if "rollouts" in seal else ""
    how += f", tokenizer and template of {Path(base['directory']).name}" if base else ""
    packages = ", ".join(f"{name} {version}" for name, version in seal["packages"].items())
    passed = sum(probe["passed"] for probe in probes)
    return Audit(link(step / "audit.json", page, step.name), runs, how, packages, passed, Table(COLUMNS, rows))


def _many(accumulation: int) -> str:
    """The fingerprint's number stands for all from itself on (scalpel/audit/fingerprint.py)."""
    return {1: "one micro-batch", 2: "two micro-batches"}.get(accumulation, "three micro-batches or more")
