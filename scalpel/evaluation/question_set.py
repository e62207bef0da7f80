"""A finished question set, opened by evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from scalpel.chat import holds
from scalpel.errors import UserError

QUESTIONS, EXAMPLES, TEXT, NOTES = "questions.parquet", "examples.parquet", "text.parquet", "notes.json"


@dataclass(frozen=True)
class QuestionSet:
    """A question set as `prepare` laid it out. format: a key of FORMATS, or LM_EVAL. control: rows that hold such text
    are left out (scalpel.chat.control_text)."""

    directory: Path
    format: str
    control: re.Pattern | None = None

    def rows(self, limit: int | None = None) -> list[dict]:
        """The questions; `row` of each is its number in the set."""
        table = pq.read_table(self.directory / QUESTIONS)
        found = [row | {"row": number} for number, row in enumerate(table.slice(0, limit).to_pylist())]
        return self._legible(found)

    def examples(self) -> list[dict]:
        """Few-shot examples, empty when the set has none."""
        path = self.directory / EXAMPLES
        return self._legible(pq.read_table(path).to_pylist()) if path.is_file() else []

    def left_out(self, limit: int | None = None) -> int:
        """How many of the questions are left out; UserError when all are."""
        table = pq.read_table(self.directory / QUESTIONS).slice(0, limit)
        lost = table.num_rows - len(self._legible(table.to_pylist()))
        if table.num_rows and lost == table.num_rows:
            raise UserError(f"{self.directory}: every question holds the text of a special token of the model's.")
        return lost

    def _legible(self, rows: list[dict]) -> list[dict]:
        return [row for row in rows if not holds(self.control, row)] if self.control else rows


def open_set(directory: Path) -> QuestionSet:
    """A finished question set; UserError when it is none or damaged."""
    try:
        return QuestionSet(directory, json.loads((directory / NOTES).read_text())["format"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{directory / NOTES} is missing or damaged; delete {directory} and make it again.") from None
