"""Hash every finished result and exhibit; name what is damaged and what was derived from it:
python -m scripts.verify [results]
"""

import sys
from pathlib import Path

from scalpel.artifact.files import RETIRED
from scalpel.damage import find, finished


def main(results: Path) -> int:
    places = finished(results)
    if not places:
        print(f"{results}: no finished result to verify", file=sys.stderr)
        return 0 if results.is_dir() else 2
    found = find(results)
    for item in found:
        for line in item.problems + item.derived:
            print(line)
    damaged = sum(bool(item.problems) for item in found)
    derived = len(found) - damaged
    total = f"{len(places)} results and exhibits"
    retired = sum((place / RETIRED).is_file() for place in places)
    more = f"; intermediate weights of {retired} runs are retired" if retired else ""
    print(
        f"{total}, {len(places) - len(found)} whole, {damaged} damaged, {derived} derived from damage{more}",
        file=sys.stderr,
    )
    if found:
        print(
            "error: `make repair` lists what is to be made again, `make repair YES=1` moves it aside", file=sys.stderr
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("results")))
