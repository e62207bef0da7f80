"""One file of a finished result, read after a comparison with the result's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalpel.artifact.files import MANIFEST, read_json
from scalpel.artifact.identity import sha256_file
from scalpel.config.load import nearest
from scalpel.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def checked(path: Path) -> Path:
    """`path`, if it is as its result's manifest says; UserError otherwise."""
    again = f"delete {path.parent} and run snakemake again."
    if not path.is_file():
        raise UserError(f"{path} is missing; {again}")
    listed = read_json(path.parent / MANIFEST).get("files", {}).get(path.name, {})
    if listed.get("sha256") != sha256_file(path):
        raise UserError(f"{path} is not what its manifest says, so it is damaged or was edited; {again}")
    return path


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
