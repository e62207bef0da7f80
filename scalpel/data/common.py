"""Rows whose question has an answer from every source: what makes arms with different answers comparable."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from scalpel.artifact.files import write_atomically
from scalpel.data.tables import write_csv
from scalpel.errors import UserError


def keep_common(own: Path, others: dict[str, Path], out: Path, difficulty: Path | None = None) -> None:
    """Write kept.parquet (rows of `own` whose question is in all of `others`), drops.csv, and shares.csv.

    own, others: kept.parquet of data or generate results made from the same source; a question is known by its row in
    that source. difficulty: answers.parquet of a generate result; shares.csv then says for each number of its right
    answers how many questions there are and how many are kept. Raises UserError when no question is left.
    """
    table = pq.read_table(own)
    rows = table.column("row").to_pylist()
    there = {name: set(pq.read_table(path, columns=["row"]).column("row").to_pylist()) for name, path in others.items()}
    dropped = {name: 0 for name in there}
    keep = []
    for index, row in enumerate(rows):
        missing = next((name for name, known in there.items() if row not in known), None)
        if missing is None:
            keep.append(index)
        else:
            dropped[missing] += 1
    if not keep:
        counts = ", ".join(f"{name} {count}" for name, count in dropped.items())
        raise UserError(
            f"none of {len(rows)} questions has an answer from every source (lacking, first source: {counts})."
        )
    pq.write_table(table.take(keep), out / "kept.parquet", compression="zstd")
    lines = [[f"no_answer_{name}", count, f"no kept answer from {name}"] for name, count in dropped.items()]
    lines += [["kept", len(keep), "trained on"], ["read", len(rows), "all rows of the arm's own source"]]
    write_csv(out / "drops.csv", ["reason", "rows", "meaning"], lines)
    if difficulty is not None:
        _shares(difficulty, {rows[index] for index in keep}, out)
    write_atomically(out / "sources.json", json.dumps(sorted(there), indent=1) + "\n")


def _shares(answers: Path, kept: set[int], out: Path) -> None:
    found = pq.read_table(answers, columns=["row", "correct"]).to_pandas()
    right = found.groupby("row")["correct"].sum()
    samples = int(found.groupby("row").size().max())
    lines = []
    for number in range(samples + 1):
        of = right[right == number].index
        lines.append([number, number / samples, len(of), sum(row in kept for row in of)])
    write_csv(out / "shares.csv", ["right", "share", "questions", "kept"], lines)
