"""Training rows from parquet, read in batches: memory is bounded by one batch, whatever the file's size."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.errors import UserError

COLUMNS = ("uuid", "problem", "answer", "source", "generations", "correctness_math_verify", "is_reasoning_complete")
OPTIONAL = ("correctness_llama",)
MORE = ("solution", "messages")  # read where a filter asks for them
LISTS = ("generations", "correctness_math_verify", "is_reasoning_complete", "correctness_llama")
BATCH_ROWS = 256


@dataclass(frozen=True)
class Rows:
    """Rows of one or more parquet files under OpenR1-Math-220k's column names."""

    files: list[Path]
    columns: dict[str, str]  # wanted name -> column of the file
    constants: dict[str, Any]
    boxed_answer_of: str | None
    total: int

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(row number over all files, row by column); one value for a list is a list of one."""
        number = 0
        for path in self.files:
            wanted = sorted(set(self.columns.values()) | ({self.boxed_answer_of} - {None}))
            try:
                # Pre-buffering keeps every row group already read; without a buffer size each one is read whole.
                file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                    for raw in batch.to_pylist():
                        yield number, self._row(raw, number, path)
                        number += 1
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f"{path} cannot be read after row {number} (truncated or corrupt: {error}); replace the file."
                ) from None

    def _row(self, raw: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
        row = {name: raw[column] for name, column in self.columns.items()} | self.constants
        if self.boxed_answer_of:
            row["answer"] = last_boxed(raw[self.boxed_answer_of] or "")
        row.setdefault("uuid", f"row-{number}")
        for name in LISTS:
            if name in row and not isinstance(row[name], (list, type(None))):
                row[name] = [row[name]]
        if not isinstance(row["problem"], str) or not row["problem"].strip():
            raise UserError(f"{path}, row {number}: column 'problem' is empty; fix or remove the row.")
        return row


def open_rows(
    files: list[Path],
    columns: dict[str, str],
    constants: dict[str, Any],
    boxed_answer_of: str | None,
    more: tuple[str, ...] = (),
) -> Rows:
    """Check files and columns before anything is read; UserError names the file and the missing column.

    more: columns of MORE that are needed, too.
    """
    if not files:
        raise UserError("the source holds no parquet file; check `source` in the config.")
    for name in (*columns, *constants):
        if name not in COLUMNS + OPTIONAL + MORE:
            known = ", ".join(COLUMNS + OPTIONAL + MORE)
            raise UserError(f"source: {name!r} is not one of the columns read: {known}.")
    total, mapping = 0, {}
    for path in files:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path} is not a readable parquet file (truncated or corrupt: {error}); replace it."
            ) from None
        there = set(file.schema_arrow.names)
        mapping = {}
        for name in COLUMNS + OPTIONAL + more:
            column = columns.get(name, name)
            if name in constants or (name == "answer" and boxed_answer_of):
                continue
            if column in there:
                mapping[name] = column
            elif name not in (*OPTIONAL, "uuid"):
                raise UserError(
                    f"{path} lacks column {column!r}; give it, or say in `source.columns` or `source.constants` "
                    f"what stands for {name!r} (the file has: {', '.join(sorted(there))})."
                )
        if boxed_answer_of and boxed_answer_of not in there:
            raise UserError(f"{path} lacks column {boxed_answer_of!r}, named by `source.boxed_answer_of`.")
        total += file.metadata.num_rows
    return Rows(files, mapping, constants, boxed_answer_of, total)


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` (or ``\fbox``) of a text, braces balanced; None when there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for index in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0) if text[index - 1] != "\\" else 0
            if depth == 0:
                return text[start:index]
    return None


def fetched_file(directory: Path) -> Path:
    """The one parquet file of a fetched evaluation dataset."""
    files = sorted((directory / "files").rglob("*.parquet"))
    if len(files) != 1:
        raise UserError(f"{directory} holds {len(files)} parquet files, one is needed; narrow `files` in the source.")
    return files[0]
