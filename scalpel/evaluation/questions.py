"""Question sets: checked once and laid out for their harness, opened again by evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.artifact.identity import sha256_file
from scalpel.errors import UserError
from scalpel.evaluation.formats import FORMATS, SHOTS, checked_rows, set_aside
from scalpel.evaluation.tasks import LM_EVAL
from scalpel.fetch import read_rows

QUESTIONS, EXAMPLES, TEXT, NOTES = "questions.parquet", "examples.parquet", "text.parquet", "notes.json"


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


def prepare(recipe: dict, files: dict[str, Path], out: Path) -> None:
    """Write questions.parquet, examples.parquet if there are few-shot examples, text.parquet (column `question`: what
    decontamination compares) and notes.json; for lm-eval's tasks also the task itself.

    recipe: the step's (Plan.questions). files: parquet, jsonl or csv files by role: ``questions`` and ``examples``, or
    lm-eval's splits. Raises UserError naming file, column or row, also when a file changed since it was planned.
    """
    for role, expected in recipe.get("sha256", {}).items():
        if sha256_file(files[role]) != expected:
            raise UserError(f"{files[role]} changed since the run was planned; start snakemake again.")
    if recipe["format"] == LM_EVAL:
        from scalpel.evaluation import lm_eval_tasks

        text, notes = lm_eval_tasks.lay_out(recipe, files, out)
    else:
        text, notes = _lay_out(recipe, files, out)
    pq.write_table(pa.table({"question": pa.array(text, pa.string())}), out / TEXT, compression="zstd")
    notes = {"format": recipe["format"]} | notes
    (out / NOTES).write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n")


def _lay_out(recipe: dict, files: dict[str, Path], out: Path) -> tuple[list[str], dict]:
    """(texts of the questions, notes) of a set in one of our formats."""
    form, columns = recipe["format"], recipe.get("columns", {})
    rows = {role: checked_rows(form, read_rows(path), columns, str(path)) for role, path in files.items()}
    questions, examples, notes = rows["questions"], rows.get("examples", []), {}
    if form == "mmlu_pro" and not examples:
        examples, questions = set_aside(questions)
        if not questions:
            raise UserError(f"{files['questions']} has at most {SHOTS} questions a category; give `examples`, too.")
        notes["examples_set_aside"] = (
            f"No examples were given: the first {SHOTS} questions of each category serve as few-shot examples and are "
            "not scored."
        )
    if form == "mmlu" and examples:
        lonely = {row["subject"] for row in questions} - {row["subject"] for row in examples}
        if lonely:
            raise UserError(
                f"{files['examples']} has no row of subject {min(lonely)!r}, which {files['questions']} asks about."
            )
    pq.write_table(pa.Table.from_pylist(questions), out / QUESTIONS, compression="zstd")
    if examples:
        pq.write_table(pa.Table.from_pylist(examples), out / EXAMPLES, compression="zstd")
    text = [row[FORMATS[form].question] for row in questions]
    return text, {"questions": len(questions), "examples": len(examples)} | notes
