"""Where every result and exhibit of a plan stands: finished, running, waiting, missing, drifted. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import MANIFEST, PROVENANCE, RESULTS, read_json
from scalpel.artifact.lease import holders
from scalpel.artifact.step import Step
from scalpel.damage import SHOWN_IN
from scalpel.errors import UserError
from scalpel.exhibits import record
from scalpel.launch.retries import MARK
from scalpel.plan import Plan
from scalpel.plan.model import Drawing
from scalpel.retire import summary
from scalpel.unused import queued

SNAKEMAKE = ".venv/bin/snakemake --cores 2"
OTHER_CODE = "made by other code"  # or packages
NAMED = 3  # of what a result waits for
STATES = {
    "finished": "made, and described by its manifest",
    "running": "somebody makes it",
    "queued": "a job of SLURM waits to make it",
    "waiting": "not all that it is made of is there",
    "ready": "all that it is made of is there",
    "missing": "not there, though what was made of it stands",
    "current": "shows what lies there",
    "outdated": "shows what was",
    "unused": "of no current configuration",
}


class Standing(NamedTuple):
    """A result's directory or an exhibit's first file, its state (a key of STATES), and what there is to say."""

    state: str
    place: str
    note: str = ""


def of_steps(plan: Plan, now: dict) -> list[Standing]:
    """Of every result of the plan. now: the circumstances of this process (scalpel/artifact/provenance.py)."""
    wanted, waiting = plan.wanted(), queued()
    return [_of_step(step, plan, now, wanted, waiting) for step in plan.steps.values()]


def of_drawings(plan: Plan) -> list[Standing]:
    """Of every figure, table and report of the plan."""
    return [_of_drawing(drawing, plan) for drawing in plan.drawings.values()]


def loose_exhibits(root: Path, plans: Iterable[Plan]) -> list[tuple[str, int]]:
    """Exhibits that no plan draws: (record, bytes of its files), by name."""
    drawn = {drawing.record_path for plan in plans for drawing in plan.drawings.values()}
    found = []
    for folder in SHOWN_IN:
        for path in sorted((root / RESULTS / folder).glob("*/*.json")):
            place = f"{RESULTS}/{folder}/{path.parent.name}/{path.name}"
            content = record.read(path)
            if place not in drawn and content:
                files = [path, *(path.with_name(name) for name in content["files"])]
                found.append((place, sum(file.stat().st_size for file in files if file.is_file())))
    return found


def changed_fields(old: object, new: object, where: str = "") -> list[str]:
    """Fields that differ between two recipes, as ``field: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [
            line for key in keys for line in changed_fields(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


# ---------------------------------------------------------------- parts


def _of_step(step: Step, plan: Plan, now: dict, wanted: set[str], waiting: set[str]) -> Standing:
    directory = plan.root / step.directory
    busy = holders(directory)
    if step.finished(plan.root):
        notes = [_drift(directory, now), summary(directory) if step.stage == "train" else ""]
        return Standing("finished", step.directory, "; ".join(note for note in notes if note))
    if busy:
        since = time.strftime("since %Y-%m-%d %H:%M, ", time.localtime(busy[0].since)) if busy[0].since else ""
        last = _last_line(plan.root / _log(step))
        return Standing("running", step.directory, f"{since}by {busy[0]}" + (f": {last}" if last else ""))
    if step.digest in waiting:
        return Standing("queued", step.directory)
    if step.digest not in wanted:
        return Standing(
            "missing",
            step.directory,
            f"what was made of it stands; make it again by: {SNAKEMAKE} {step.manifest} "
            f"--config scale={plan.config.scale_name}",
        )
    needed = [other for other in (step.inputs | step.gates).values() if not other.finished(plan.root)]
    notes = [_waits_for([f"{other.stage}/{other.name}" for other in needed])] if needed else []
    if (plan.root / f"{_log(step)}{MARK}").is_file():
        notes.append(f"its last try ended with an error: {_log(step)}")
    notes += _since_the_last(step, directory)
    return Standing("waiting" if needed else "ready", step.directory, "; ".join(notes))


def _of_drawing(drawing: Drawing, plan: Plan) -> Standing:
    if plan.is_current(drawing):
        return Standing("current", drawing.files[0])
    needed = [f"{step.stage}/{step.name}" for step in drawing.steps if not step.finished(plan.root)]
    needed += [other.name for other in drawing.exhibits if not plan.is_current(other)]
    note = _waits_for(needed) if needed else ""
    if (plan.root / drawing.record_path).is_file():
        return Standing("outdated", drawing.files[0], note)
    return Standing("waiting" if needed else "ready", drawing.files[0], note)


def _waits_for(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"for {', '.join(names[:NAMED])}{more}"


def _drift(directory: Path, now: dict) -> str:
    """In which code and packages a finished result was made, if not in these."""
    try:
        made = read_json(directory / PROVENANCE) if (directory / PROVENANCE).is_file() else {}
    except UserError:
        return f"{PROVENANCE} is damaged: it tells when and by what this was made and may be deleted"
    drift = [f"code {made.get('code')}, here {now['code']}"] if made.get("code") != now["code"] else []
    drift += changed_fields(made.get("packages", {}), now["packages"], "package")
    return f"{OTHER_CODE}: {'; '.join(drift)}" if drift else ""


def _since_the_last(step: Step, directory: Path) -> list[str]:
    """What changed since the newest finished result of the same name."""
    others = sorted(directory.parent.glob(f"{step.name}-*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not others:
        return []
    try:
        old = read_json(others[-1])
        inputs = {role: item["digest"] for role, item in old["inputs"].items()}
        new_inputs = {role: item.digest for role, item in step.inputs.items()}
        lines = changed_fields(old["recipe"], step.recipe) + changed_fields(inputs, new_inputs, "input")
    except (UserError, KeyError, TypeError, AttributeError):
        return []
    return [f"since {others[-1].parent.name}: {', '.join(lines)}"]


def _log(step: Step) -> str:
    return f"{RESULTS}/logs/{step.stage}/{step.name}-{step.digest}.log"


def _last_line(path: Path) -> str:
    """The last line of a log, which tells how far a job is; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:120] for line in reversed(lines) if line.strip()), "")
