"""List the intermediate weights that all that is planned has read; with --yes remove them:
python -m scripts.retire [--yes]

What is planned is what config.yaml says: add every study that is to read a run before its weights go.
"""

import argparse
import sys
from pathlib import Path

from scalpel.artifact.disk import disk_errors
from scalpel.cost.render import size
from scalpel.plan import Plan
from scalpel.program import WORKFLOW, configured, end_with
from scalpel.retire import retirable, retire


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.retire", description=__doc__.splitlines()[0])
    parser.add_argument("--yes", action="store_true", help="remove them; without it nothing is changed")
    parser.add_argument("--scale", help="a scale of workflow/scales; default: config.yaml's")
    options = parser.parse_args()
    plan = Plan(configured(options.scale), WORKFLOW, Path("."))
    found = list(retirable(plan))
    for run in found:
        note = f"   [{run.why}]" if run.why else ""
        print(f"{'stays' if run.why else 'may go':7} {size(run.weight):>8} {run.directory}{note}")
    free = [run for run in found if not run.why]
    total = size(sum(run.weight for run in free))
    if not free:
        print("no intermediate weights may go", file=sys.stderr)
    elif not options.yes:
        print(
            f"{total} in {len(free)} runs; `make retire YES=1` removes them, and only training brings them back; any "
            "other study that is to read them must stand in config.yaml first",
            file=sys.stderr,
        )
    else:
        for run in free:
            with disk_errors(run.directory):
                retire(run)
        print(f"{total} removed; retired.json of each run says what", file=sys.stderr)
    return 0


if __name__ == "__main__":
    end_with(main)
