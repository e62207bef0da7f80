"""List what is damaged or derived from damage; with --yes move it aside, so that snakemake makes it again:
python -m scripts.repair [--yes] [results]
"""

import argparse
import sys
from pathlib import Path

from scalpel.artifact.disk import disk_errors
from scalpel.damage import find, move_aside
from scalpel.errors import UserError
from scalpel.program import end_with
from scalpel.retire import not_again


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.repair", description=__doc__.splitlines()[0])
    parser.add_argument("--yes", action="store_true", help="move aside; without it nothing is changed")
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    options = parser.parse_args()
    if not options.results.is_dir():
        raise UserError(f"{options.results} is not a directory; name the results directory.")
    found = find(options.results)
    for item in found:
        why_not = not_again(item.place, options.results) if item.place.is_dir() else ""
        print(f"{'damaged' if item.problems else 'derived':9} {item.place}" + (f"   [{why_not}]" if why_not else ""))
    if not found:
        print("nothing is damaged", file=sys.stderr)
    elif not options.yes:
        print(f"{len(found)} to be made again: `make repair YES=1` moves them aside", file=sys.stderr)
    else:
        with disk_errors(options.results, kept="what was moved lies in its folder `aside`"):
            target = move_aside(found, options.results)
        print(f"{len(found)} moved to {target}: snakemake makes them again; then delete that folder", file=sys.stderr)
    return 0


if __name__ == "__main__":
    end_with(main)
