"""Question files of the public benchmarks: validated, then laid out for the harnesses.

Files have the public datasets' own columns. What a harness would trip over half-way (a missing column, an
answer that is not among the choices) is found here, before any checkpoint is evaluated.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.data.sources import last_boxed
from scalpel.errors import UserError

SHOTS = 5  # few-shot examples per category set aside when MMLU-Pro comes without its validation split


def prepare(files: dict[str, Path], out: Path) -> None:
    """Write <file>.parquet for every given file, questions.parquet (dataset, question), and notes.json.

    files: keys of config.EvaluationFile -> parquet. Raises UserError naming file, column or row.
    """
    notes: dict[str, str] = {}
    tables = {
        name: [CHECKS[name](row, f"{path}, row {i}") for i, row in enumerate(_read(path, name))]
        for name, path in files.items()
    }
    if "mmlu_pro" in tables and "mmlu_pro_dev" not in tables:
        tables["mmlu_pro_dev"], tables["mmlu_pro"] = _set_aside(tables["mmlu_pro"])
        notes["mmlu_pro_dev"] = (
            f"No validation split was given: the first {SHOTS} questions of each category serve as few-shot examples "
            f"and are not scored ({len(tables['mmlu_pro_dev'])} rows)."
        )
    if "mmlu" in tables and "mmlu_dev" in tables:
        lonely = {row["subject"] for row in tables["mmlu"]} - {row["subject"] for row in tables["mmlu_dev"]}
        if lonely:
            raise UserError(
                f"{files['mmlu_dev']} has no row of subject {min(lonely)!r}, which {files['mmlu']} asks about."
            )
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), out / f"{name}.parquet", compression="zstd")
    questions = [
        {"dataset": name, "question": row.get("problem") or row.get("question") or row.get("prompt") or row["Question"]}
        for name, rows in tables.items()
        if not name.endswith(("_dev", "_train"))
        for row in rows
    ]
    schema = pa.schema([("dataset", pa.string()), ("question", pa.string())])
    pq.write_table(pa.Table.from_pylist(questions, schema), out / "questions.parquet", compression="zstd")
    (out / "notes.json").write_text(json.dumps(notes, indent=1) + "\n")


def _set_aside(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """(few-shot rows, the rest): the first SHOTS of each category, in order."""
    counts: dict[str, int] = {}
    shots, rest = [], []
    for row in rows:
        counts[row["category"]] = counts.get(row["category"], 0) + 1
        (shots if counts[row["category"]] <= SHOTS else rest).append(row)
    if not rest:
        raise UserError(f"mmlu_pro has no more than {SHOTS} questions a category; give mmlu_pro_dev as well.")
    return shots, rest


def _read(path: Path, name: str) -> list[dict]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file (truncated or corrupt: {error}); replace it.") from None
    if not rows:
        raise UserError(f"{path} holds no rows; {name} cannot be evaluated on it.")
    return rows


# ---------------------------------------------------------------- one check per dataset


def _need(row: dict, columns: tuple[str, ...], where: str) -> None:
    for column in columns:
        if column not in row:
            path = where.rsplit(", row", 1)[0]
            raise UserError(f"{path} lacks column {column!r} (it has: {', '.join(sorted(row))}).")
        if row[column] is None or row[column] == "":
            raise UserError(f"{where}: column {column!r} is empty; mend or remove the row.")


def _free_form(row: dict, where: str) -> dict:
    """MATH-500 and AIME: a problem, its answer and, if there is one, its solution."""
    row = dict(row)
    if "problem" not in row and "prompt" in row:
        row["problem"] = row.pop("prompt")
    if "answer" not in row and row.get("solution"):
        row["answer"] = last_boxed(row["solution"])
    _need(row, ("problem", "answer"), where)
    answer = str(row["answer"])
    answer = last_boxed(answer) or answer  # some copies of AIME box the answer
    return {"problem": row["problem"], "solution": row.get("solution") or f"$\\boxed{{{answer}}}$", "answer": answer}


def _aime(row: dict, where: str) -> dict:
    row = _free_form(row, where)
    if not re.fullmatch(r"\d+", row["answer"].strip()):
        raise UserError(f"{where}: the answer {row['answer']!r} is not a whole number; mend or remove the row.")
    return row


def _gsm8k(row: dict, where: str) -> dict:
    _need(row, ("question", "answer"), where)
    if not re.search(r"#### *-?[\d,.]+\s*$", row["answer"]):
        raise UserError(f"{where}: the answer does not end in '#### <number>'; mend or remove the row.")
    return {"question": row["question"], "answer": row["answer"]}


def _mmlu(row: dict, where: str) -> dict:
    _need(row, ("question", "subject", "choices", "answer"), where)
    if len(row["choices"]) != 4 or row["answer"] not in range(4):
        raise UserError(f"{where}: MMLU rows have 4 choices and an answer from 0 to 3; mend or remove the row.")
    return {key: row[key] for key in ("question", "subject", "choices", "answer")}


def _mmlu_pro(row: dict, where: str) -> dict:
    _need(row, ("question", "options", "answer", "category"), where)
    letters = "ABCDEFGHIJ"[: len(row["options"])]
    if not 2 <= len(row["options"]) <= 10 or row["answer"] not in letters:
        raise UserError(
            f"{where}: the answer {row['answer']!r} is not the letter of one of its {len(letters)} options."
        )
    # The letter counts, as in lm-eval's task; a few public rows hold another index beside it.
    kept = {key: row[key] for key in ("question", "options", "answer", "category")}
    return kept | {"answer_index": letters.index(row["answer"]), "question_id": row.get("question_id", 0)}


def _gpqa(row: dict, where: str) -> dict:
    columns = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    _need(row, columns, where)
    return {key: str(row[key]) for key in columns}


def _ifeval(row: dict, where: str) -> dict:
    row = dict(row)
    if "kwargs__json" not in row and "kwargs" in row:
        row["kwargs__json"] = json.dumps(row["kwargs"])
    _need(row, ("prompt", "instruction_id_list", "kwargs__json"), where)
    try:
        arguments = json.loads(row["kwargs__json"])
    except json.JSONDecodeError:
        raise UserError(f"{where}: kwargs__json is not valid JSON; mend or remove the row.") from None
    if len(arguments) != len(row["instruction_id_list"]):
        raise UserError(
            f"{where}: {len(row['instruction_id_list'])} instructions but {len(arguments)} sets of arguments."
        )
    return {key: row[key] for key in ("prompt", "instruction_id_list", "kwargs__json")}


CHECKS: dict[str, Callable[[dict, str], dict]] = {
    "aime24": _aime,
    "math_500": _free_form,
    "gsm8k": _gsm8k,
    "gsm8k_train": _gsm8k,
    "gpqa_diamond": _gpqa,
    "mmlu": _mmlu,
    "mmlu_dev": _mmlu,
    "mmlu_pro": _mmlu_pro,
    "mmlu_pro_dev": _mmlu_pro,
    "ifeval": _ifeval,
}
