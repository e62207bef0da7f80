"""Question sets checked once and laid out for their harness."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.artifact.checking import unchanged
from scalpel.data.tables import read_rows
from scalpel.errors import UserError
from scalpel.evaluation import lm_eval_tasks
from scalpel.evaluation.formats import FORMATS, SHOTS, checked_rows, set_aside, shuffled
from scalpel.evaluation.question_set import EXAMPLES, NOTES, QUESTIONS, TEXT
from scalpel.evaluation.tasks import LM_EVAL


def prepare(recipe: dict, files: dict[str, Path], out: Path) -> None:
    """Write questions.parquet, examples.parquet if there are few-shot examples, text.parquet (column `question`: what
    decontamination compares) and notes.json; for lm-eval's tasks also the task itself.

    recipe: the step's (Plan.questions). files: parquet, jsonl or csv files by role: ``questions`` and ``examples``, or
    lm-eval's splits. Raises UserError naming file, column or row, also when a file changed since it was planned.
    """
    with unchanged({files[role]: digest for role, digest in recipe.get("sha256", {}).items()}):
        lay_out = lm_eval_tasks.lay_out if recipe["format"] == LM_EVAL else _lay_out
        text, notes = lay_out(recipe, files, out)
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
    if "shuffle" in recipe:
        questions = shuffled(form, questions, recipe["shuffle"])
    pq.write_table(pa.Table.from_pylist(questions), out / QUESTIONS, compression="zstd")
    if examples:
        pq.write_table(pa.Table.from_pylist(examples), out / EXAMPLES, compression="zstd")
    text = [row[FORMATS[form].question] for row in questions]
    return text, {"questions": len(questions), "examples": len(examples)} | notes
