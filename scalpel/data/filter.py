"""Which rows are trained on, and why each other row is not (paper section 3.1, appendix A).

Reasons are tried in the order of REASONS and the first that applies is the row's; `drops.csv` counts them
and adds up to the rows read. Rows are streamed in batches; what grows with the data is a hash per kept
question, some 75 bytes.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.chat import control_text, load_tokenizer, render
from scalpel.config.data import FilterRecipe
from scalpel.data.sources import BATCH_ROWS, Rows
from scalpel.errors import UserError
from scalpel.grading.grader import Grader
from scalpel.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONS = {
    "other_source": "column source is not the wanted one",
    "no_verified_trace": "no trace, or no generation that was verified (filter.verified_by)",
    "incomplete_trace": "every verified generation is incomplete (column is_reasoning_complete)",
    "duplicate": "same question as an earlier kept row, spacing and letter case aside",
    "evaluation_overlap": "shares an n-gram of words with an evaluation question",
    "special_token": "problem or trace holds the text of a special token, which would become one",
    "unparsable_answer": "no answer can be read in the column that filter.gold names",
    "prompt_too_long": "rendered prompt exceeds filter.max_prompt_tokens",
    "too_long": "rendered conversation exceeds filter.max_tokens",
}
ENOUGH = {"beyond_most_rows": "filter.most_rows were kept before it"}

KEPT_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("uuid", pa.string()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("trace", pa.string()),
        ("tokens", pa.int64()),
        ("prompt_tokens", pa.int64()),
    ]
)
DROPPED_SCHEMA = pa.schema([("row", pa.int64()), ("uuid", pa.string()), ("reason", pa.string())])


def filter_rows(rows: Rows, recipe: FilterRecipe, model: Path, guarded: list[Path], out: Path) -> None:
    """Write kept.parquet, dropped.parquet (row, uuid, reason) and drops.csv (reason, rows, meaning) to `out`.

    guarded: parquet files with a column `question`: what no kept row may overlap with.
    """
    tokenizer = load_tokenizer(model)
    overlap = Overlap(recipe.decontamination_ngram or 1)
    for path in guarded if recipe.decontamination_ngram else ():
        for question in pq.read_table(path, columns=["question"]).column("question").to_pylist():
            overlap.add(question)
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    with (
        Grader() as grader,
        pq.ParquetWriter(out / "kept.parquet", KEPT_SCHEMA, compression="zstd") as kept_file,
        pq.ParquetWriter(out / "dropped.parquet", DROPPED_SCHEMA, compression="zstd") as dropped_file,
    ):
        for batch in _batches(track(rows, "filter: row", total=rows.total)):
            kept, dropped = _decide(batch, recipe, tokenizer, overlap, seen, grader)
            if recipe.most_rows is not None:
                room = recipe.most_rows - counts["kept"]
                beyond = [{"row": r["row"], "uuid": r["uuid"], "reason": "beyond_most_rows"} for r in kept[room:]]
                kept, dropped = kept[:room], sorted(dropped + beyond, key=lambda item: item["row"])
            counts.update(item["reason"] for item in dropped)
            counts["kept"] += len(kept)
            kept_file.write_table(pa.Table.from_pylist(kept, KEPT_SCHEMA))
            dropped_file.write_table(pa.Table.from_pylist(dropped, DROPPED_SCHEMA))
    if counts.total() != rows.total:
        raise UserError(f"{rows.files[0]}: {rows.total} rows announced, {counts.total()} read; the file is damaged.")
    if not counts["kept"]:
        worst = counts.most_common(1)[0]
        raise UserError(
            f"the filter kept none of {rows.total} rows; {worst[1]} were dropped as {worst[0]!r}: check `filter`."
        )
    with open(out / "drops.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["reason", "rows", "meaning"])
        reasons = REASONS | (ENOUGH if recipe.most_rows is not None else {})
        table.writerows([reason, counts[reason], meaning] for reason, meaning in reasons.items())
        table.writerow(["kept", counts["kept"], "trained on"])
        table.writerow(["read", rows.total, "all rows of the source"])


def _batches(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    batch = []
    for item in rows:
        batch.append(item)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _decide(
    batch: list[tuple[int, dict[str, Any]]],
    recipe: FilterRecipe,
    tokenizer: PreTrainedTokenizerBase,
    overlap: Overlap,
    seen: set[int],
    grader: Grader,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(kept, dropped) of one batch, in row order. Costly checks come last and see only what is left."""
    reasons: dict[int, str] = {}
    left = []
    control = control_text(tokenizer)
    for number, row in batch:
        reason, trace = choose_trace(row, number, recipe)
        if reason is None:
            reason = "duplicate" if recipe.duplicates == "drop" and fingerprint(row["problem"]) in seen else None
        if reason is None and overlap.hit(row["problem"]):
            reason = "evaluation_overlap"
        if reason is None and any(map(control.search, (row["problem"], trace))):
            reason = "special_token"
        if reason is None:
            left.append((number, row, trace))
        else:
            reasons[number] = reason
    parsable = grader.grade_many([(row[recipe.gold] or "", "") for _, row, _ in left])
    candidates = []
    for (number, row, trace), verdict in zip(left, parsable, strict=True):
        if verdict is not None or recipe.unparsable_answer == "keep":
            candidates.append((number, row, trace))
        elif recipe.unparsable_answer == "drop":
            reasons[number] = "unparsable_answer"
        else:
            raise UserError(
                f"row {number} ({row['uuid']}): no answer can be read in column {recipe.gold!r} "
                f"({row[recipe.gold]!r}); fix the row, or set filter.unparsable_answer to 'drop'."
            )
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    prompts = encode([render(tokenizer, row["problem"]) for _, row, _ in candidates], add_special_tokens=False)
    whole = encode([render(tokenizer, row["problem"], trace) for _, row, trace in candidates], add_special_tokens=False)
    kept = []
    for (number, row, trace), prompt, conversation in zip(candidates, prompts, whole, strict=True):
        mark = fingerprint(row["problem"])
        if recipe.max_prompt_tokens is not None and len(prompt) > recipe.max_prompt_tokens:
            reasons[number] = "prompt_too_long"
        elif recipe.max_tokens is not None and len(conversation) > recipe.max_tokens:
            reasons[number] = "too_long"
        elif mark in seen and recipe.duplicates == "drop":  # twice in this very batch
            reasons[number] = "duplicate"
        else:
            seen.add(mark)
            kept.append(
                {
                    "row": number,
                    "uuid": row["uuid"],
                    "problem": row["problem"],
                    "answer": row[recipe.gold] or "",
                    "trace": trace,
                    "tokens": len(conversation),
                    "prompt_tokens": len(prompt),
                }
            )
    uuids = {number: row["uuid"] for number, row in batch}
    dropped = [{"row": number, "uuid": uuids[number], "reason": reasons[number]} for number in sorted(reasons)]
    return kept, dropped


def choose_trace(row: dict[str, Any], number: int, recipe: FilterRecipe) -> tuple[str | None, str]:
    """(reason to drop or None, trace): the first generation that is verified and complete, as far as the recipe asks
    for that, or what the assistant says in column `messages` of a row that has such a generation."""
    if recipe.source is not None and row["source"] != recipe.source:
        return "other_source", ""
    generations = row["generations"] or []
    verified = row["correctness_math_verify"] or [None] * len(generations)
    complete = row["is_reasoning_complete"] or [None] * len(generations)
    judged = row.get("correctness_llama") or [None] * len(generations)
    if not len(generations) == len(verified) == len(complete) == len(judged):
        raise UserError(
            f"row {number} ({row['uuid']}): columns generations, correctness_math_verify, is_reasoning_complete and "
            f"correctness_llama hold {len(generations)}, {len(verified)}, {len(complete)} and {len(judged)} values; "
            "they must agree."
        )
    right = VERIFIED[recipe.verified_by]
    found = [i for i, text in enumerate(generations) if text and right(verified[i], judged[i])]
    finished = [i for i in found if complete[i] or not recipe.require_complete]
    said = _assistant(row["messages"]) if recipe.trace == "messages" else None
    if not found or said == "":
        return "no_verified_trace", ""
    if not finished:
        return "incomplete_trace", ""
    return None, said or generations[finished[0]]


VERIFIED: dict[str, Callable[[Any, Any], bool]] = {  # math-verify's verdict and the Llama judge's; None: no verdict
    "math_verify": lambda verified, judged: bool(verified),
    "math_verify_or_llama": lambda verified, judged: bool(verified or judged),
    "math_verify_and_llama": lambda verified, judged: bool(verified and judged),
    "none": lambda verified, judged: True,
}


def _assistant(messages: list[dict[str, str]] | None) -> str:
    """The assistant's last turn; empty when there is none."""
    return next((turn["content"] or "" for turn in reversed(messages or []) if turn["role"] == "assistant"), "")


# ---------------------------------------------------------------- questions compared


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits: what decontamination compares."""
    return re.findall(r"\w+", text.lower())


def fingerprint(text: str) -> int:
    """64-bit hash of a question, spacing and letter case aside."""
    return _hash(" ".join(text.lower().split()))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


class Overlap:
    """n-grams of words of the evaluation questions; a shorter question counts as one gram of its own length."""

    def __init__(self, n: int):
        self.n = n
        self.grams: set[int] = set()
        self.short: set[int] = set()

    def add(self, question: str) -> None:
        tokens = words(question)
        if len(tokens) >= self.n:
            self.grams.update(self._grams(tokens))
        elif tokens:
            self.short.add(_hash(" ".join(tokens)))

    def hit(self, question: str) -> bool:
        """True when the question shares an n-gram with an evaluation question, or is one of the short ones."""
        tokens = words(question)
        return _hash(" ".join(tokens)) in self.short or any(gram in self.grams for gram in self._grams(tokens))

    def _grams(self, tokens: list[str]) -> Iterator[int]:
        return (_hash(" ".join(tokens[i : i + self.n])) for i in range(len(tokens) - self.n + 1))
