"""Re-hash every finished result and name what is missing, altered or truncated: python -m scripts.verify [results]"""

import sys
from pathlib import Path

from scalpel.artifact.files import MANIFEST
from scalpel.artifact.manifest import problems
from scalpel.errors import UserError


def main(root: Path) -> int:
    finished = sorted(path.parent for path in root.glob(f"*/*/{MANIFEST}"))
    if not finished:
        print(f"{root}: no finished result to verify", file=sys.stderr)
        return 0 if root.is_dir() else 2
    bad = 0
    for directory in finished:
        try:
            found = problems(directory)
        except UserError as error:
            found = [str(error)]
        bad += bool(found)
        for problem in found:
            print(problem)
    print(f"{len(finished)} results, {len(finished) - bad} whole, {bad} damaged", file=sys.stderr)
    if bad:
        print("error: delete a damaged result's directory and run snakemake to make it again", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("results")))
