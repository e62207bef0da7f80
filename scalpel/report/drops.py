"""The section on data: what the filter did with each row of a source."""

from __future__ import annotations

import csv
from pathlib import Path

from scalpel.errors import UserError
from scalpel.exhibits.files import checked
from scalpel.report.tables import Column, Table


def drops(directory: Path) -> Table:
    """Rows by what became of them; UserError when they do not add up to the rows read."""
    path = checked(directory / "drops.csv")
    try:
        with open(path, newline="") as file:
            found = [(row["reason"], int(row["rows"]), row.get("meaning") or "") for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged; delete {directory} and run snakemake again.") from None
    total = sum(count for reason, count, _ in found if reason != "read")
    read = [count for reason, count, _ in found if reason == "read"]
    if read and read[0] != total:
        raise UserError(f"{path}: {total} rows are accounted for and {read[0]} were read; run the data stage again.")
    rows = [
        (reason, f"{count:,}", f"{count / max(total, 1):.1%}", meaning)
        for reason, count, meaning in found
        if reason != "read"
    ]
    rows.append(("all rows read", f"{total:,}", "100.0%", "the lines above add up"))
    return Table([Column("Reason"), Column("rows", True), Column("share", True), Column("Meaning")], rows)
