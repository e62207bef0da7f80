"""Formats of question sets: which columns a row has, what is checked, and what its question is.

The public datasets' formats have their own columns. For benchmarks of the user's own there are ``math`` (a problem and
a final answer that math-verify compares), ``exact_match`` (a question and an answer compared as normalised text),
``choice`` (a question, its choices, and the right one) and ``facts`` (what causal tracing reads). How each is asked and
scored stands in lighteval_tasks.py and mmlu_pro.py.

What a harness would trip over half-way (a missing column, an answer that is not among the choices) is found here,
before any checkpoint is evaluated.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scalpel.config.load import nearest
from scalpel.data.sources import Place
from scalpel.errors import UserError
from scalpel.evaluation import ifeval
from scalpel.grading.text import last_boxed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHOTS = 5  # few-shot examples per category set aside when MMLU-Pro comes without any


@dataclass(frozen=True)
class Format:
    """columns: that a row needs. optional: that it may have. question: the column that decontamination compares.

    check: (row, where) -> the row as harnesses take it; it raises UserError naming `where` and the column.
    """

    columns: tuple[str, ...]
    question: str
    check: Callable[[dict, str], dict]
    optional: tuple[str, ...] = ()

    def renamed(self, row: dict, columns: dict[str, str], where: str) -> dict:
        """The row under this format's column names; `columns` maps these to the file's."""
        file = where.rsplit(", row", 1)[0]
        for name in columns:
            if name not in self.columns + self.optional:
                raise UserError(f"{file}: `columns` names {name!r}{nearest(name, self.columns + self.optional)}.")
        places = {name: Place.of(column, row) for name, column in columns.items()}
        for place in places.values():
            if place.inside and isinstance(text := row.get(f"{place.column}__json"), str):
                row = row | {place.column: json.loads(text)}  # what jsonl files of objects come as
            if place.column not in row:
                raise UserError(f"{file} lacks column {place.column!r} (it has: {', '.join(sorted(row))}).")
        taken = {place.column for place in places.values()} - set(columns)
        return {name: value for name, value in row.items() if name not in taken} | {
            name: _found(place, row, columns[name], where) for name, place in places.items()
        }


def _found(place: Place, row: dict, path: str, where: str) -> Any:
    """What lies there in the row; UserError where nothing does."""
    try:
        found = place.value(row)
    except (KeyError, TypeError, IndexError):
        found = None
    if found is None and place.inside:
        raise UserError(f"{where}: nothing lies at {path!r}; correct `columns`, or remove the row.")
    return found


def checked_rows(form: str, rows: list[dict], columns: dict[str, str], file: str) -> list[dict]:
    """All rows of a file in a format; UserError for the first that does not fit, or when there is none."""
    if not rows:
        raise UserError(f"{file} holds no rows; a question set needs some.")
    kind, checked = FORMATS[form], []
    for number, row in enumerate(rows):
        where = f"{file}, row {number}"
        for column, value in row.items():
            check_encodable(value, column, where)
        checked.append(kind.check(kind.renamed(row, columns, where), where))
    return checked


def check_encodable(value: Any, column: str, where: str) -> None:
    """UserError for text that is no Unicode (half of a surrogate pair, as JSON allows it)."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: column {column!r} holds text that is no Unicode; correct or remove it."
            ) from None
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            check_encodable(item, column, where)


# ---------------------------------------------------------------- the public datasets'


def _need(row: dict, columns: tuple[str, ...], where: str) -> None:
    for column in columns:
        if column not in row:
            file = where.rsplit(", row", 1)[0]
            raise UserError(f"{file} lacks column {column!r} (it has: {', '.join(sorted(row))}).")
        if row[column] is None or row[column] == "" or row[column] == []:
            raise UserError(f"{where}: column {column!r} is empty; fill it in or remove the row.")


def _list(row: dict, column: str, where: str) -> list:
    """A column that holds a list, or its JSON text as csv files do."""
    value = row[column]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, list):
        raise UserError(f"{where}: column {column!r} holds {row[column]!r}; it needs a list, or its JSON text.")
    return value


def _text(row: dict, column: str, where: str) -> str:
    if not isinstance(row[column], str) or not row[column].strip():
        raise UserError(f"{where}: column {column!r} holds {row[column]!r}; it needs text.")
    return row[column]


def _plain(row: dict, column: str, where: str) -> str:
    """Text, or a number as its text."""
    value = row[column]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"{where}: {column!r} is {value}; correct or remove the row.")
        return str(value)
    return _text(row, column, where)


def _math(row: dict, where: str) -> dict:
    """A problem, its answer and, if there is one, its solution, whose last box is the answer where none is given."""
    row = dict(row)
    if "problem" not in row and "prompt" in row:
        row["problem"] = row.pop("prompt")
    if row.get("solution") is not None:
        _text(row, "solution", where)
    if "answer" not in row and row.get("solution"):
        row["answer"] = last_boxed(row["solution"])
    _need(row, ("problem", "answer"), where)
    answer = _plain(row, "answer", where)
    answer = last_boxed(answer) or answer  # some copies of AIME box the answer
    solution = row.get("solution") or f"$\\boxed{{{answer}}}$"
    return {"problem": _text(row, "problem", where), "solution": solution, "answer": answer}


def _aime(row: dict, where: str) -> dict:
    row = _math(row, where)
    if not re.fullmatch(r"\d+", row["answer"].strip()):
        raise UserError(f"{where}: the answer {row['answer']!r} is not a whole number; correct or remove the row.")
    return row


def _gsm8k(row: dict, where: str) -> dict:
    _need(row, ("question", "answer"), where)
    if not re.search(r"#### *-?[\d,.]+\s*$", _text(row, "answer", where)):
        raise UserError(f"{where}: the answer does not end in '#### <number>'; correct or remove the row.")
    return {"question": _text(row, "question", where), "answer": row["answer"]}


def _gpqa(row: dict, where: str) -> dict:
    columns = FORMATS["gpqa"].columns
    _need(row, columns, where)
    return {key: _plain(row, key, where) for key in columns}


def _mmlu(row: dict, where: str) -> dict:
    _need(row, ("question", "subject", "choices", "answer"), where)
    choices, answer = _list(row, "choices", where), row["answer"]
    answer = int(answer) if isinstance(answer, str) and answer.isdecimal() else answer
    if len(choices) != 4 or isinstance(answer, bool) or answer not in range(4):
        raise UserError(f"{where}: MMLU rows have 4 choices and an answer from 0 to 3; correct or remove the row.")
    choices = [_plain({"choices": choice}, "choices", where) for choice in choices]
    texts = {key: _text(row, key, where) for key in ("question", "subject")}
    return texts | {"choices": choices, "answer": int(answer)}


def _mmlu_pro(row: dict, where: str) -> dict:
    _need(row, ("question", "options", "answer", "category"), where)
    options = _list(row, "options", where)
    letters = LETTERS[: len(options)]
    if not 2 <= len(options) <= 10 or row["answer"] not in tuple(letters):
        raise UserError(
            f"{where}: the answer {row['answer']!r} is not the letter of one of its {len(letters)} options."
        )
    # The letter counts, as in lm-eval's task; a few public rows hold another index beside it.
    kept: dict[str, Any] = {key: _text(row, key, where) for key in ("question", "answer", "category")}
    kept["options"] = [_plain({"options": option}, "options", where) for option in options]
    return kept | {"answer_index": letters.index(row["answer"]), "question_id": row.get("question_id", 0)}


def _ifeval(row: dict, where: str) -> dict:
    row = dict(row)
    if "kwargs__json" not in row and "kwargs" in row:
        row["kwargs__json"] = row["kwargs"] if isinstance(row["kwargs"], str) else json.dumps(row["kwargs"])
    _need(row, ("prompt", "instruction_id_list", "kwargs__json"), where)
    instructions = _list(row, "instruction_id_list", where)
    try:
        arguments = json.loads(row["kwargs__json"])
    except (json.JSONDecodeError, TypeError):
        raise UserError(f"{where}: kwargs__json is not valid JSON; correct or remove the row.") from None
    if not isinstance(arguments, list):
        raise UserError(f"{where}: kwargs__json does not hold a list; correct or remove the row.")
    ifeval.check(instructions, arguments, where)
    return {
        "prompt": _text(row, "prompt", where),
        "instruction_id_list": instructions,
        "kwargs__json": row["kwargs__json"],
    }


# ---------------------------------------------------------------- the user's own


def _exact_match(row: dict, where: str) -> dict:
    _need(row, ("question", "answer"), where)
    return {"question": _text(row, "question", where), "answer": _plain(row, "answer", where)}


def _choice(row: dict, where: str) -> dict:
    _need(row, ("question", "choices", "answer"), where)
    choices = [str(choice) for choice in _list(row, "choices", where)]
    labels = None if row.get("labels") is None else [str(label) for label in _list(row, "labels", where)]
    if labels is not None and (len(labels) != len(choices) or labels.count(str(row["answer"])) != 1):
        raise UserError(
            f"{where}: `labels` holds {labels!r}; one for each of the {len(choices)} choices is needed, and one of "
            f"them must be the answer, {row['answer']!r}."
        )
    if not 2 <= len(choices) <= len(LETTERS) or not all(choice.strip() for choice in choices):
        raise UserError(f"{where}: `choices` holds {choices!r}; 2 to {len(LETTERS)} of them are needed, none empty.")
    return {
        "question": _text(row, "question", where),
        "choices": choices,
        "answer": labels.index(str(row["answer"])) if labels else _index(row["answer"], choices, where),
    }


def _index(answer: Any, choices: list[str], where: str) -> int:
    """The right choice's index, given as an index, a letter or the choice itself.

    A number is an index. Text may be read in several ways; where these disagree the row is refused.
    """
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and answer % 1 == 0:
        readings = {int(answer)}
    else:
        text = str(answer).strip()
        readings = {index for index, choice in enumerate(choices) if choice.strip() == text}
        readings |= {LETTERS.index(text)} if len(text) == 1 and text in LETTERS[: len(choices)] else set()
        readings |= {int(text)} if text.isdecimal() and int(text) < len(choices) else set()
    if len(readings) > 1:
        raise UserError(
            f"{where}: the answer {answer!r} may mean several choices (index, letter or text); "
            "give every answer as a number, the index from 0, or, in a csv, as a letter."
        )
    if not readings or not 0 <= min(readings) < len(choices):
        raise UserError(
            f"{where}: the answer {answer!r} is no index from 0 to {len(choices) - 1}, no letter and no text of its "
            f"{len(choices)} choices."
        )
    return min(readings)


def _facts(row: dict, where: str) -> dict:
    _need(row, ("subject", "attribute", "prompt"), where)
    row = {key: _text(row, key, where) for key in ("subject", "attribute", "prompt")}
    if row["subject"] not in row["prompt"]:
        raise UserError(f"{where}: the subject {row['subject']!r} does not occur in the prompt {row['prompt']!r}.")
    return row


FORMATS: dict[str, Format] = {
    "math": Format(("problem", "answer"), "problem", _math, ("solution", "prompt")),
    "aime": Format(("problem", "answer"), "problem", _aime, ("solution", "prompt")),
    "gsm8k": Format(("question", "answer"), "question", _gsm8k),
    "gpqa": Format(
        ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        "Question",
        _gpqa,
    ),
    "mmlu": Format(("question", "subject", "choices", "answer"), "question", _mmlu),
    "mmlu_pro": Format(("question", "options", "answer", "category"), "question", _mmlu_pro, ("question_id",)),
    "ifeval": Format(("prompt", "instruction_id_list"), "prompt", _ifeval, ("kwargs", "kwargs__json")),
    "exact_match": Format(("question", "answer"), "question", _exact_match),
    "choice": Format(("question", "choices", "answer"), "question", _choice, ("labels",)),
    "facts": Format(("subject", "attribute", "prompt"), "prompt", _facts),
}


def set_aside(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """(few-shot rows, the rest) of MMLU-Pro: the first SHOTS of each category, in order."""
    counts: dict[str, int] = {}
    shots: list[dict]
    rest: list[dict]
    shots, rest = [], []
    for row in rows:
        counts[row["category"]] = counts.get(row["category"], 0) + 1
        (shots if counts[row["category"]] <= SHOTS else rest).append(row)
    return shots, rest


def shuffled(form: str, rows: list[dict], seed: int) -> list[dict]:
    """Rows of multiple choice with their choices in an order of the seed's, each row its own; the answer follows."""
    name = "options" if form == "mmlu_pro" else "choices"
    answer = "answer_index" if form == "mmlu_pro" else "answer"
    found = []
    for number, row in enumerate(rows):
        order = list(range(len(row[name])))
        random.Random(f"{seed} {number}").shuffle(order)
        row = row | {name: [row[name][place] for place in order], answer: order.index(row[answer])}
        found.append(row | ({"answer": LETTERS[row[answer]]} if form == "mmlu_pro" else {}))
    return found
