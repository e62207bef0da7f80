"""The section on cost: what each run and the whole study took, from provenance.json of every result and the logs.

Job time is wall time of the start that finished a result: what earlier starts of the same job took is not in it. CPU
time is that of the process that wrote the result and of its children, in all threads. FLOPs are those counted of
training and of written answers (scalpel/exhibits/spent.py); measuring is not counted. What the study's entries do not
hold, as fetching, question sets and audits, is not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.checking import checked
from scalpel.artifact.files import PROVENANCE, RECIPE, read_json
from scalpel.errors import UserError
from scalpel.exhibits import spent
from scalpel.exhibits.results import Results
from scalpel.progress import clock
from scalpel.report.tables import NONE, Column, Table

ROWS = ("data", "common", "generate")  # stages whose results are rows that several runs are trained on
MAKING = ("train", "given", "base", *ROWS)  # stages that make something; others measure it


class Took(NamedTuple):
    """Of one result; nan where it is not recorded. seconds, cpu: wall and CPU time. gpu: GPU-seconds reserved. flops:
    counted, None where nothing is to be counted. machine: its host."""

    seconds: float
    cpu: float
    gpu: float
    flops: float | None
    machine: str


def cost(results: Results, label: Callable[[str], str] = str) -> Table | None:
    """A row for every run and seed, and one for all results together, each once; None where no result says what it
    took. What was spent before a run (its start, the answers it learns from) stands in a column of its own, and in the
    rows of what was spent on it."""
    by_run: dict[tuple[str, int, str], list[tuple[str, Path]]] = {}
    before: dict[tuple[str, int, str], list[Path]] = {}
    for result in results.found:
        key = (result.run, result.seed, result.stage if result.stage in ROWS else "")
        by_run.setdefault(key, []).append((result.stage, result.step))
        before.setdefault(key, []).extend(result.chain)
    took = {step: _took(step) for steps in by_run.values() for _, step in steps}
    took |= {step: _took(step) for steps in before.values() for step in steps if step not in took}
    if all(math.isnan(one.seconds) for one in took.values()):
        return None
    chains, gpus = any(before.values()), any(one.gpu > 0 for one in took.values())
    rows = []
    for key, steps in by_run.items():
        made = [took[step] for step in dict.fromkeys(step for stage, step in steps if stage in MAKING)]
        measured = [took[step] for step in dict.fromkeys(step for stage, step in steps if stage not in MAKING)]
        earlier = [took[step] for step in dict.fromkeys(before[key])]
        parts = [earlier, made, measured] if chains else [made, measured]
        run, seed, stage = key
        name = f"{stage} {run}" if stage else label(run)
        rows.append([name, str(seed or NONE), *map(_time, parts), *_all([*made, *measured], gpus)])
    rows.append(["all of these, each once", "", *[""] * (2 + chains), *_all(list(took.values()), gpus)])
    heads = ["run", "seed", *(["before it"] if chains else []), "making it", "measuring it", "both", "CPU time"]
    heads += [*(["GPU time"] if gpus else []), "FLOPs counted", "machine"]
    return Table([Column(name, name not in ("run", "machine")) for name in heads], rows)


def _all(took: list[Took], gpus: bool) -> list[str]:
    """The cells of what was spent in all."""
    machines = dict.fromkeys(one.machine for one in took if one.machine)
    cells = [_time(took), _sum((one.cpu for one in took), clock)]
    cells += [_sum((one.gpu for one in took), clock)] if gpus else []
    flops = [one.flops for one in took if one.flops is not None]
    return [*cells, _sum(flops, "{:.3g}".format), ", ".join(machines) or NONE]


def _time(took: list[Took]) -> str:
    return _sum((one.seconds for one in took), clock)


def _sum(values: Iterable[float], form: Callable[[float], str]) -> str:
    """Of what is known, at least that where something is not; a dash where nothing is."""
    there = list(values)
    known = [value for value in there if not math.isnan(value)]
    return f"{'≥ ' if len(known) < len(there) else ''}{form(math.fsum(known))}" if known else NONE


def _took(step: Path) -> Took:
    nan = math.nan
    try:
        one = json.loads((step / PROVENANCE).read_text())
        seconds, cpu = (float(one.get(name, nan)) for name in ("seconds", "cpu_seconds"))
        machine = str(one.get("host") or "")
    except (OSError, ValueError, TypeError, AttributeError):
        seconds, cpu, machine = nan, nan, ""
    return Took(seconds, cpu, seconds * _gpus(step), _flops(step), machine)


def _gpus(step: Path) -> int:
    """That a result's job reserved, on all its nodes."""
    try:
        settings = read_json(step / RECIPE).get("settings", {})
    except UserError:
        return 0
    nodes = int(settings.get("nodes", 1)) + int((settings.get("server") or {}).get("nodes", 0))
    return int(settings.get("gpus", 0)) * nodes


def _flops(step: Path) -> float | None:
    """Counted, where something is; nan where a run's logs do not say, or not any more."""
    try:
        if step.parent.name == "train":
            return float(spent.of_run(step)[list(spent.KINDS)].to_numpy().sum())
        if step.parent.name == "generate":
            return float(read_json(checked(step / "spent.json"))["flops"])
    except (UserError, KeyError):
        return math.nan
    return math.nan if step.parent.name == "given" else None
