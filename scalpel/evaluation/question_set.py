"""A finished question set, opened by evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from scalpel.errors import UserError

QUESTIONS, EXAMPLES, TEXT, NOTES = "questions.parquet", "examples.parquet", "text.parquet", "notes.json"
LM_EVAL = "lm_eval"


@dataclass(frozen=True)
class QuestionSet:
    """A question set as `prepare` laid it out. format: a key of FORMATS, or LM_EVAL."""

    directory: Path
    format: str

    def rows(self, limit: int | None = None) -> list[dict]:
        """The questions; `row` of each is its number in the set."""
        table = pq.read_table(self.directory / QUESTIONS)
        return [row | {"row": number} for number, row in enumerate(table.slice(0, limit).to_pylist())]

    def examples(self) -> list[dict]:
        """Few-shot examples, empty when the set has none."""
        path = self.directory / EXAMPLES
        return pq.read_table(path).to_pylist() if path.is_file() else []


def open_set(directory: Path) -> QuestionSet:
    """A finished question set; UserError when it is none or damaged."""
    try:
        return QuestionSet(directory, json.loads((directory / NOTES).read_text())["format"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{directory / NOTES} is missing or damaged; delete {directory} and make it again.") from None
