"""What a command line of Snakemake asks for, read by Snakemake's own parser before the plan's DAG is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
    """Words of a command line: what is to be made, the rules or files named by --until, --omit-from, --forcerun and
    --prioritize, and the rules named by --allowed-rules."""

    targets: list[str]
    bounds: list[str]
    allowed: list[str]


def asked() -> Asked:
    """Of this process; nothing where another program than Snakemake's own reads the Snakefile."""
    if Path(sys.argv[0]).name not in ("snakemake", "snakemake.exe") and not sys.argv[0].endswith(
        "snakemake/__main__.py"
    ):
        return Asked([], [], [])
    from snakemake.cli import get_argument_parser

    found, _ = get_argument_parser().parse_known_args(sys.argv[1:])
    options = (found.until, found.omit_from, found.forcerun, found.prioritize)
    bounds = [str(word) for words in options for word in words or ()]
    return Asked(sorted(found.targets or ()), sorted(bounds), sorted(found.allowed_rules or ()))
