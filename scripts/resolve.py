"""Resolve the hub branches that given runs and models name to commits: python -m scripts.resolve

Writes revisions.yaml beside config.yaml, a line for each branch; one that stands there stays as it is, so that a
branch that moved changes nothing by itself. Needs the network.
"""

import argparse
import sys
from pathlib import Path

from scalpel.errors import UserError
from scalpel.fetch import branch_commits
from scalpel.given import REVISIONS, branches, read_revisions, write_revisions
from scalpel.program import configured, end_with


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.resolve", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", help="a scale of workflow/scales; default: config.yaml's")
    config = configured(parser.parse_args().scale)
    known = read_revisions(Path("."))
    named = {repo: dict.fromkeys(names) for repo, names in branches(config).items()}
    wanted = {repo: [b for b in names if f"{repo}@{b}" not in known] for repo, names in named.items()}
    for repo, names in wanted.items():
        commits = branch_commits(repo) if names else {}
        for name in names:
            if name not in commits:
                raise UserError(f"{repo} has no branch {name!r}; it has {', '.join(sorted(commits)[:8])}.")
            known[f"{repo}@{name}"] = commits[name]
    write_revisions(Path("."), known)
    print(f"{REVISIONS}: {sum(map(len, wanted.values()))} branches resolved, {len(known)} in all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    end_with(main)
