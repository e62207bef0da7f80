"""Training rows from parquet, read in batches: memory is bounded by one batch, whatever the file's size."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.data.tables import decoded
from scalpel.errors import UserError
from scalpel.grading.text import last_boxed

COLUMNS = ("uuid", "problem", "answer", "source", "generations", "correctness_math_verify", "is_reasoning_complete")
OPTIONAL = ("correctness_llama",)
NUMBERED = ("uuid", "answer")  # texts for which a file may hold numbers
MORE = ("solution", "messages")  # read where a filter asks for them
LISTS = ("generations", "correctness_math_verify", "is_reasoning_complete", "correctness_llama")
TRUTHS = LISTS[1:]  # of true or false
BATCH_ROWS = 256
NESTED = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[-?\d+\])+")  # a path to a value inside a column


class Place(NamedTuple):
    """Where in a row a value lies: a column, then names of fields and places in lists, -1 the last."""

    column: str
    inside: tuple[str | int, ...] = ()

    @classmethod
    def of(cls, text: str, there: Collection[str]) -> Place:
        """``prompt[-1].content``; a column that is called so comes first."""
        if text in there or not NESTED.fullmatch(text):
            return cls(text)
        column, *inside = re.findall(r"[^.\[\]]+", text)
        return cls(column, tuple(int(part) if re.fullmatch(r"-?\d+", part) else part for part in inside))

    def kind(self, kind: pa.DataType) -> pa.DataType | None:
        """The type of what lies there in a column of this type; None where nothing can."""
        for part in self.inside:
            if isinstance(part, int) and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                kind = kind.value_type
            elif isinstance(part, str) and pa.types.is_struct(kind) and kind.get_field_index(part) >= 0:
                kind = kind.field(part).type
            else:
                return None
        return kind

    def value(self, row: dict[str, Any]) -> Any:
        """None where a list is too short or something on the way is missing."""
        found = row[self.column]
        for part in self.inside:
            if found is None or (isinstance(part, int) and not -len(found) <= part < len(found)):
                return None
            found = found[part]
        return found


@dataclass(frozen=True)
class Rows:
    """Rows of one or more parquet files under OpenR1-Math-220k's column names."""

    files: list[Path]
    columns: dict[str, Place]  # wanted name -> where the file has it
    constants: dict[str, Any]
    boxed_answer_of: str | None
    total: int

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(row number over all files, row by column); one value for a list is a list of one."""
        number = 0
        for path in self.files:
            boxed = cast("set[str]", {self.boxed_answer_of} - {None})
            wanted = sorted({place.column for place in self.columns.values()} | boxed)
            try:
                # Pre-buffering keeps every row group already read; without a buffer size each one is read whole.
                file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                    for raw in decoded(batch, path, number):
                        yield number, self._row(raw, number, path)
                        number += 1
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f"{path} cannot be read after row {number} (truncated or corrupt: {error}); replace the file."
                ) from None

    def _row(self, raw: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
        row = {name: place.value(raw) for name, place in self.columns.items()} | self.constants
        if self.boxed_answer_of:
            row["answer"] = last_boxed(raw[self.boxed_answer_of] or "")
        row.setdefault("uuid", f"row-{number}")
        for name in NUMBERED:
            row[name] = None if row[name] is None or row[name] != row[name] else str(row[name])  # nan is no answer
        for name in LISTS:
            inside = name in self.columns and self.columns[name].inside
            if name in row and not isinstance(row[name], list) and (inside or row[name] is not None):
                row[name] = [row[name]]  # of nothing where nothing lies inside
        if not isinstance(row["problem"], str) or not row["problem"].strip():
            raise UserError(f"{path}, row {number}: column 'problem' is empty; fix or remove the row.")
        return row


def _fits(name: str, kind: pa.DataType) -> bool:
    """Whether a file's column of this type can stand for column `name`."""
    if name in LISTS and pa.types.is_list(kind) | pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or name == "messages":
        return True
    if name in TRUTHS:
        return pa.types.is_boolean(kind)
    if name in NUMBERED and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return True
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _wanted(name: str) -> str:
    what = "true or false" if name in TRUTHS else "text"
    return f"{what}, or a list of it" if name in LISTS else what


def _constant_fits(name: str, value: Any) -> bool:
    values = value if name in LISTS and isinstance(value, list) else [value]
    return all(isinstance(item, bool if name in TRUTHS else str) for item in values if item is not None)


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
    for name, value in constants.items():
        if not _constant_fits(name, value):
            raise UserError(f"source.constants: {name} is {value!r}; it needs {_wanted(name)}.")
    mapping: dict[str, Place]
    total, mapping = 0, {}
    for number, path in enumerate(files):
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path} is not a readable parquet file (truncated or corrupt: {error}); replace it."
            ) from None
        there = set(file.schema_arrow.names)
        before, mapping = mapping, {}
        for name in COLUMNS + OPTIONAL + more:
            column = columns.get(name, name)
            if name in constants or (name == "answer" and boxed_answer_of):
                continue
            if Place.of(column, there).column in there:
                mapping[name] = Place.of(column, there)
            elif name not in (*OPTIONAL, "uuid"):
                raise UserError(
                    f"{path} lacks column {column!r}; give it, or say in `source.columns` or `source.constants` "
                    f"what stands for {name!r} (the file has: {', '.join(sorted(there))})."
                )
        if boxed_answer_of and boxed_answer_of not in there:
            raise UserError(f"{path} lacks column {boxed_answer_of!r}, named by `source.boxed_answer_of`.")
        for name, place in mapping.items():
            whole = file.schema_arrow.field(place.column).type
            kind, column = place.kind(whole), columns.get(name, name)
            if kind is None:
                raise UserError(
                    f"{path}: nothing lies at {column!r}, by which `source.columns` names {name!r}: column "
                    f"{place.column!r} holds values of type {whole}."
                )
            if not _fits(name, kind):
                raise UserError(
                    f"{path}, row 0 and all others: column {column!r} holds values of type {kind}; it needs "
                    f"{_wanted(name)}, so convert the column."
                )
        if number and set(mapping) != set(before):
            name = min(set(mapping) ^ set(before))
            raise UserError(
                f"{files[number - 1]} and {path}: one has the column {columns.get(name, name)!r} and the other does "
                "not; give it to both, or leave it out of both."
            )
        total += file.metadata.num_rows
    return Rows(files, mapping, constants, boxed_answer_of, total)


def fetched_file(directory: Path) -> Path:
    """The one parquet file of a fetched evaluation dataset."""
    files = sorted((directory / "files").rglob("*.parquet"))
    if len(files) != 1:
        raise UserError(f"{directory} holds {len(files)} parquet files, one is needed; narrow `files` in the source.")
    return files[0]
