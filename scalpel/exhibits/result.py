"""One finished result, as exhibits see it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Result(NamedTuple):
    """One finished result: whose it is, and where it lies (scalpel/plan/model.py, Entry)."""

    stage: str
    run: str
    seed: int
    step: Path  # its directory
    part: str = ""  # group of benchmarks, or measure of KL
    shard: int = 1
    reference: str = "base"  # what checkpoints are compared with
    chain: tuple[Path, ...] = ()  # what was spent before the run itself, the first one first
