"""Which results are finished, which are missing, and which were made by other code: python -m scripts.status

Drift is shown, never acted on: a result made by older code stands until its directory is moved aside or its stage's
version is raised in scalpel/stages.py. A result that was taken away although what was made of it stands is missing, and
Snakemake does not make it again by itself; the command that does is named.
"""

import sys
from pathlib import Path

from scalpel.artifact.files import MANIFEST, PROVENANCE, read_json
from scalpel.artifact.lease import holders
from scalpel.artifact.provenance import circumstances
from scalpel.plan import Plan
from scalpel.program import WORKFLOW, configured, end_with
from scalpel.retire import summary

SNAKEMAKE = ".venv/bin/snakemake --cores 2"


def changed_fields(old: object, new: object, where: str = "") -> list[str]:
    """Fields that differ between two recipes, as ``field: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [
            line for key in keys for line in changed_fields(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


def main() -> int:
    root = Path(".")
    plan = Plan(configured(), WORKFLOW, root)
    now, wanted = circumstances(), plan.wanted()
    rows: list[tuple[str, str, str]] = []
    for step in plan.steps.values():
        directory = root / step.directory
        if (directory / MANIFEST).is_file():
            made = read_json(directory / PROVENANCE) if (directory / PROVENANCE).is_file() else {}
            drift = [f"code {made.get('code')}, now {now['code']}"] if made.get("code") != now["code"] else []
            drift += changed_fields(made.get("packages", {}), now["packages"], "package")
            drift += [words] if step.stage == "train" and (words := summary(directory)) else []
            rows.append(("finished", step.directory, "; ".join(drift)))
            continue
        busy = holders(directory)
        state = "running" if busy else "missing"
        others = sorted(directory.parent.glob(f"{step.name}-*/{MANIFEST}"), key=lambda p: p.stat().st_mtime)
        difference = ""
        if others:
            old = read_json(others[-1])
            inputs = {role: item["digest"] for role, item in old["inputs"].items()}
            new_inputs = {role: item.digest for role, item in step.inputs.items()}
            lines = changed_fields(old["recipe"], step.recipe) + changed_fields(inputs, new_inputs, "input")
            difference = f"since {others[-1].parent.name}: " + ", ".join(lines)
        if busy:
            difference = f"by {busy[0]}"
        elif step.digest not in wanted:
            difference = f"what was made of it stands; make it again by: {SNAKEMAKE} {step.manifest}"
        rows.append((state, step.directory, difference))
    done = sum(state == "finished" for state, _, _ in rows)
    total = len(rows)
    for drawing in plan.drawings.values():
        there = (root / drawing.record_path).is_file()
        state = "current" if plan.is_current(drawing) else "outdated" if there else "missing"
        rows.append((state, drawing.files[0], ""))
    for state, what, note in rows:
        print(f"{state:9} {what}" + (f"   [{note}]" if note else ""))
    print(f"{done} of {total} results finished", file=sys.stderr)
    return 0


if __name__ == "__main__":
    end_with(main)
