"""What an interrupted run resumes from: states that are complete or not there, and journals cut back to them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COMPLETE = "complete.json"


def usable_state(state: Path) -> Path | None:
    """The newest complete state; incomplete and damaged ones are named, removed and passed over.

    complete.json lists the state's files and how far the journals went, with size and sha256, and the
    checkpoints exported until then, by size. Whatever is missing makes the state unusable.
    """
    found = sorted(state.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for path in found:
        try:
            complete = json.loads((path / COMPLETE).read_text())
            files = complete["files"]
            whole = (
                all((path / name).stat().st_size == item["bytes"] for name, item in files.items())
                and digests(path, list(files)) == files
                and all(file_digest(state / name, item["bytes"]) == item for name, item in complete["journals"].items())
                and all(
                    (state.with_name("checkpoints") / name).stat().st_size == size
                    for name, size in complete["checkpoints"].items()
                )
            )
        except (OSError, json.JSONDecodeError, AttributeError, KeyError, TypeError):
            whole = False
        if whole:
            print(f"resuming from step {path.name.rsplit('-', 1)[1]}", file=sys.stderr, flush=True)
            return path
        print(f"{path} is incomplete or damaged: falling back on an earlier one", file=sys.stderr, flush=True)
        shutil.rmtree(path)
    return None


def file_digest(path: Path, length: int | None = None) -> dict[str, Any]:
    """{bytes, sha256} of a file, or of its first `length` bytes; fewer when it is shorter."""
    left = path.stat().st_size if length is None else length
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(min(1 << 20, left - size)):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def digests(directory: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """file_digest of many files, several at a time: a state of a 7B model is over 100 GB."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: file_digest(directory / name), names), strict=True))


class Journal:
    """Rows that belong to steps (questions asked, rollouts), on disk at once and cut back on resumption."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema = path, schema

    def cut(self, length: int) -> None:
        """Forget what was written after the first `length` bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(length)

    def add(self, rows: list[dict]) -> None:
        """Append rows, a line of JSON each."""
        with open(self.path, "a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, one after the other."""
        with open(self.path) as lines:
            yield from map(json.loads, lines)

    def sync(self) -> dict[str, Any]:
        """Make sure of what was written; returns its {bytes, sha256}."""
        with open(self.path, "a") as file:
            os.fsync(file.fileno())
        return file_digest(self.path)

    def write_parquet(self, target: Path, rows_at_once: int = 4096) -> None:
        """All rows as a parquet file of the journal's schema."""
        rows = self.rows()
        with pq.ParquetWriter(target, self.schema, compression="zstd") as writer:
            while part := list(itertools.islice(rows, rows_at_once)):
                writer.write_table(pa.Table.from_pylist(part, schema=self.schema))


QUESTIONS = pa.schema({"step": pa.int64(), "position": pa.int64(), "row": pa.int64(), "uuid": pa.string()})
