"""Where every result, figure, table and report of config.yaml stands: python -m scripts.status [--scale cluster]

Results come as finished, running, queued, waiting, ready or missing, exhibits as current, outdated, waiting or ready;
what lies in results/ and is of no current configuration comes last, with its size. Nothing is written, installed or
made: drift is shown, never acted on. A result that was taken away although what was made of it stands is missing, and
Snakemake does not make it again by itself; the command that does is named.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from scalpel import unused
from scalpel.artifact.provenance import circumstances
from scalpel.cost.render import size
from scalpel.plan import Plan
from scalpel.program import WORKFLOW, configured, end_with, plans_of_all_scales
from scalpel.standing import OTHER_CODE, Standing, loose_exhibits, of_drawings, of_steps


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.status", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", help="a scale of workflow/scales; default: config.yaml's")
    options = parser.parse_args()
    root = Path(".")
    plan = Plan(configured(options.scale), WORKFLOW, root)
    plans = [plan, *plans_of_all_scales(root)[0]]
    steps = of_steps(plan, circumstances())
    found = unused.find(root, plans)
    loose = [Standing("unused", item.place, size(item.bytes)) for item in found]
    shown = [Standing("unused", place, size(held)) for place, held in loose_exhibits(root, plans)]
    for state, what, note in [*steps, *of_drawings(plan), *loose, *shown]:
        print(f"{state:9} {what}" + (f"   [{note}]" if note else ""))
    print(totals(steps, sum(item.bytes for item in found)), file=sys.stderr)
    return 0


def totals(steps: list[Standing], bytes_unused: int) -> str:
    """The last line: how many results are in each state."""
    counts = Counter(step.state for step in steps)
    done = counts.pop("finished", 0)
    other = sum(step.note.startswith(OTHER_CODE) for step in steps)
    parts = [f"{done} of {len(steps)} results finished" + (f" ({other} {OTHER_CODE})" if other else "")]
    parts += [f"{count} {state}" for state, count in counts.items()]
    parts += [f"{size(bytes_unused)} of no current configuration (`make clean-unused`)"] if bytes_unused else []
    return ", ".join(parts)


if __name__ == "__main__":
    end_with(main)
