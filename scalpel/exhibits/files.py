"""One file of a finished result, read after a comparison with the result's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalpel.artifact.checking import checked
from scalpel.config.load import nearest
from scalpel.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """`columns` (None: all) of a parquet file; UserError when it lacks one, holds no rows or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = f"delete {path.parent} and run snakemake again."
    try:
        there = pq.read_schema(checked(path)).names
        for column in columns or ():
            if column not in there:
                raise UserError(f"{path} has no column {column!r}{nearest(column, there)}.")
        frame = pq.read_table(path, columns=list(columns) if columns else None).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet ({type(error).__name__}); {again}") from None
    if frame.empty:
        raise UserError(f"{path} holds no rows; {again}")
    return frame
