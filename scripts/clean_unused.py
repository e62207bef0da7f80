"""List the results of no current configuration with their sizes; with --yes remove them:
python -m scripts.clean_unused [--yes]

Never what is being made or queued, nor what that is made from; never what config.yaml plans at any scale; no exhibit.
"""

import argparse
import sys
from pathlib import Path

from scalpel import unused
from scalpel.artifact.disk import disk_errors
from scalpel.artifact.files import RESULTS
from scalpel.cost.render import size
from scalpel.errors import UserError
from scalpel.plan import Plan
from scalpel.program import WORKFLOW, configured, end_with, plans_of_all_scales


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.clean_unused", description=__doc__.splitlines()[0])
    parser.add_argument("--yes", action="store_true", help="remove; without it nothing is changed")
    options = parser.parse_args()
    root = Path(".")
    if not (root / RESULTS).is_dir():
        raise UserError(f"there is no {RESULTS}/ here; run this in the directory that holds it.")
    plans, refused = plans_of_all_scales(root)
    found = unused.find(root, [Plan(configured(), WORKFLOW, root), *plans])
    for item in found:
        print(f"{size(item.bytes):>8}  {item.place}")
    for sentence in refused if found else ():
        print(f"note: {sentence}", file=sys.stderr)
    total = f"{len(found)} results of no current configuration, {size(sum(item.bytes for item in found))}"
    if not options.yes:
        print(f"{total}" + (": `make clean-unused YES=1` removes them" if found else ""), file=sys.stderr)
        return 0
    with disk_errors(root / RESULTS, kept="results that were not removed yet are whole"):
        left = unused.remove_unused(found, root)
    print(f"{len(found) - len(left)} of {total}, removed", file=sys.stderr)
    for place in left:
        print(f"left: {place} is being made", file=sys.stderr)
    return 0


if __name__ == "__main__":
    end_with(main)
