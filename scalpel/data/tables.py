"""Small tables of others: parquet, jsonl and csv files as rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.errors import UserError

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


def read_rows(path: Path, nested: bool = False) -> list[dict[str, Any]]:
    """All rows of a file, by its suffix; every value of a csv file is text.

    Columns of objects, whose keys differ per row, become JSON text in ``<column>__json``, unless `nested`.
    Raises UserError naming file and line when it cannot be read.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: {', '.join(SUFFIXES)} files are read; convert it to one of these.")
    try:
        if path.suffix == ".parquet":
            return decoded(pq.read_table(path), path)
        rows = _read_csv(path) if path.suffix == ".csv" else _read_json(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read (truncated or corrupt: {error}); replace it.") from None
    return rows if nested else [_flat(row) for row in rows]


def first_row(path: Path) -> list[dict[str, Any]]:
    """The first row of a file in a list, as `read_rows` gives it; empty when the file holds none."""
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            batches = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20).iter_batches(batch_size=1)
            return next((batch.to_pylist() for batch in batches), [])
        if path.suffix == ".jsonl":
            with open(path, encoding="utf-8-sig") as file:
                line = next((line for line in file if line.strip()), "null")
            row = json.loads(line)
            return [_flat(row)] if isinstance(row, dict) else read_rows(path)[:1]
    except (pa.ArrowException, OSError, UnicodeDecodeError, json.JSONDecodeError):
        pass  # reading it whole says what is wrong, and in which line
    return read_rows(path)[:1]


def decoded(table: pa.Table | pa.RecordBatch, path: Path, first: int = 0) -> list[dict[str, Any]]:
    """Rows of a table of the file `path`, whose first is row `first`; UserError naming a row that is not valid text."""
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        column, row = _undecodable(table)
        raise UserError(
            f"{path}, row {first + row}: column {column!r} is not valid UTF-8; correct or remove the row."
        ) from None


def _undecodable(table: pa.Table | pa.RecordBatch) -> tuple[str, int]:
    """(column, row) of the first text that is not valid UTF-8."""
    for name in table.schema.names:
        for number, value in enumerate(table.column(name)):
            try:
                value.as_py()
            except UnicodeDecodeError:
                return name, number
    raise ValueError("all of it is valid")


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8-sig") as file:  # Excel's begin with a byte order mark
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}, line {reader.line_num}: it has more or fewer fields than the first line.")
            rows.append(row)
        return rows


def _read_json(path: Path) -> list[dict[str, Any]]:
    """JSON objects, one a line or in one list."""
    text = path.read_text(encoding="utf-8-sig")
    # Not splitlines: text may hold other line ends than \n unescaped.
    parts = [text] if text.lstrip().startswith("[") else text.split("\n")
    rows: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if part.strip():
            try:
                rows += json.loads(part) if len(parts) == 1 and part.lstrip().startswith("[") else [json.loads(part)]
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number + error.lineno}: not valid JSON ({error.msg}).") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} does not hold JSON objects, one a line or in one list.")
    if path.suffix == ".json" and len(rows) == 1 and len(rows[0]) == 1:
        (name, value), *_ = rows[0].items()
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise UserError(f"{path} holds one object whose {name!r} is a list; write that list alone.")
    return rows


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    def objects(value: Any) -> bool:
        return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))

    nested = {name: json.dumps(value, ensure_ascii=False) for name, value in row.items() if objects(value)}
    plain = {name: value for name, value in row.items() if name not in nested}
    return plain | {f"{name}__json": text for name, text in nested.items()}


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    """A csv file with a header."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
