"""A model's own answers to the kept questions, verified: what a run is trained on in place of traces.

Each question is answered `samples` times by the inference engine and every answer is checked. The first one that is
right, ended of itself and fits the rows' cap of tokens takes the trace's place; questions without one are dropped and
counted. Answers are journalled in parts below state/, so a start that was killed costs its last part, and the result
is the same file by file.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.artifact.files import STATE, write_atomically
from scalpel.chat import control_text, load_tokenizer, opening, render
from scalpel.config.data import GenerateRecipe
from scalpel.config.evaluation import EvaluationSettings
from scalpel.data.filter import KEPT_SCHEMA
from scalpel.data.tables import write_csv
from scalpel.errors import UserError
from scalpel.grading.grader import Grader
from scalpel.inference import EngineSettings, open_engine
from scalpel.inference.requests import Engine, Request
from scalpel.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VLLM_AT_ONCE = 4096  # completions of one part: vLLM makes batches itself, and its last ones are small
WRITTEN_AT_ONCE = 256  # questions of a row group, whatever the parts

ANSWERS = pa.schema(
    [
        ("row", pa.int64()),
        ("uuid", pa.string()),
        ("sample", pa.int64()),
        ("completion", pa.string()),  # with what the template lets the assistant's turn begin with
        ("tokens", pa.int64()),  # written, the one that ended it included
        ("correct", pa.bool_()),
        ("ended", pa.bool_()),  # of itself, within max_new_tokens
    ]
)
REASONS = {
    "no_verified_answer": "none of the answers is right",
    "special_token": "every right answer holds the text of a special token, which would become one",
    "too_long": "no right answer ended within max_new_tokens and fits filter.max_tokens with its question",
}


def generate(
    rows: Path,
    model: Path,
    base: Path,
    recipe: GenerateRecipe,
    seed: int,
    max_tokens: int | None,
    settings: EvaluationSettings,
    out: Path,
) -> None:
    """Write answers.parquet, kept.parquet (the data stage's columns), drops.csv, difficulty.csv and spent.json.

    rows: kept.parquet of the data stage. model: who answers, asked by its own template. base: by whose template the
    kept conversations are trained on, and measured. seed: the run's; each question's random numbers follow from it and
    the question's row. max_tokens: of a kept conversation, as the rows were filtered. Raises UserError when no question
    has an answer that can be kept.
    """
    import torch

    from scalpel.weights import architecture

    torch.set_num_threads(settings.threads)
    questions = pq.read_table(rows, columns=[name for name in KEPT_SCHEMA.names if name != "trace"]).to_pylist()
    tokenizer, asked = load_tokenizer(base), load_tokenizer(model)
    parameters = sum(parameter.numel() for parameter in architecture(model).parameters())
    journal = Journal(out / STATE, questions, recipe.samples)
    size = VLLM_AT_ONCE if recipe.inference == "vllm" else settings.batch_size
    parts = journal.missing(max(1, size // recipe.samples))
    if parts:
        engine = open_engine(
            recipe.inference,
            model,
            EngineSettings(batch_size=settings.batch_size, memory_fraction=settings.memory_fraction),
        )
        with Grader() as grader:
            for first, last in track(parts, f"answers: {recipe.samples} to each of {len(questions)} questions, part"):
                journal.add(first, last, _answers(questions[first:last], engine, asked, grader, recipe, seed))
    _write(questions, journal, tokenizer, recipe, max_tokens, parameters, out)


def _answers(
    questions: list[dict],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
    recipe: GenerateRecipe,
    seed: int,
) -> list[dict]:
    """Rows of ANSWERS, question after question."""
    texts = [render(tokenizer, question["problem"]) for question in questions]
    prompts = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    requests = [
        Request(prompt, (seed + recipe.seed, question["row"]), recipe.samples, recipe.max_new_tokens)
        for prompt, question in zip(prompts, questions, strict=True)
    ]
    found = engine.complete(requests, recipe.temperature, recipe.top_p)
    begun = opening(tokenizer)
    answers = []
    for question, completions in zip(questions, found, strict=True):
        written = tokenizer.batch_decode([one.ids for one in completions], skip_special_tokens=False)
        for sample, (one, text) in enumerate(zip(completions, written, strict=True)):
            ended = one.end is not None
            answers.append(
                {
                    "row": question["row"],
                    "uuid": question["uuid"],
                    "sample": sample,
                    "completion": begun + text,
                    "tokens": len(one.ids) + ended,
                    "ended": ended,
                }
            )
    golds = [question["answer"] for question in questions for _ in range(recipe.samples)]
    pairs = [(gold, answer["completion"]) for gold, answer in zip(golds, answers, strict=True)]
    for answer, verdict in zip(answers, grader.grade_many(pairs), strict=True):
        answer["correct"] = verdict is True
    return answers


class Journal:
    """Answers of finished parts, a parquet file each, named by the questions it holds."""

    def __init__(self, directory: Path, questions: list[dict], samples: int):
        self.directory, self.questions, self.samples = directory, questions, samples
        directory.mkdir(parents=True, exist_ok=True)

    def missing(self, size: int) -> list[tuple[int, int]]:
        """(first, last) of parts of up to `size` questions still to be answered; what is damaged is removed."""
        for stray in self.directory.glob(".*"):
            stray.unlink()
        gaps, done = [], 0
        for first, last, path in self._parts():
            if first >= done and self._whole(first, last, path):
                gaps.append((done, first))
                done = last
            else:
                print(f"{path} is damaged: its questions are asked again", file=sys.stderr, flush=True)
                path.unlink()
        gaps.append((done, len(self.questions)))
        return [(start, min(start + size, end)) for begin, end in gaps for start in range(begin, end, size)]

    def add(self, first: int, last: int, answers: list[dict]) -> None:
        """A finished part, on disk before the next one begins."""
        path = self.directory / f"answers-{first:09d}-{last:09d}.parquet"
        partial = path.with_name(f".{path.name}")
        pq.write_table(pa.Table.from_pylist(answers, ANSWERS), partial, compression="zstd")
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)

    def __iter__(self) -> Iterator[list[dict]]:
        """The answers to each question, in order."""
        for _, _, path in self._parts():
            rows = pq.read_table(path).to_pylist()
            for start in range(0, len(rows), self.samples):
                yield rows[start : start + self.samples]

    def _parts(self) -> list[tuple[int, int, Path]]:
        found = self.directory.glob("answers-*-*.parquet")
        return sorted(cast("tuple[int, int, Path]", (*map(int, path.stem.split("-")[1:]), path)) for path in found)

    def _whole(self, first: int, last: int, path: Path) -> bool:
        try:
            rows = pq.read_table(path, columns=["row"]).column("row").to_pylist()
        except (pa.ArrowException, OSError):
            return False
        return rows == [question["row"] for question in self.questions[first:last] for _ in range(self.samples)]


def _write(
    questions: list[dict],
    journal: Journal,
    tokenizer: PreTrainedTokenizerBase,
    recipe: GenerateRecipe,
    max_tokens: int | None,
    parameters: int,
    out: Path,
) -> None:  # fmt: skip
    """The result, from the journal."""
    counts: Counter[str] = Counter()
    asked: Counter[int]
    kept_of: Counter[int]
    asked, kept_of = Counter(), Counter()  # by how many of a question's answers are right
    control = control_text(tokenizer)
    read = written = 0
    found = zip(questions, journal, strict=True)
    with (
        pq.ParquetWriter(out / "answers.parquet", ANSWERS, compression="zstd") as answers_file,
        pq.ParquetWriter(out / "kept.parquet", KEPT_SCHEMA, compression="zstd") as kept_file,
    ):
        while group := list(itertools.islice(found, WRITTEN_AT_ONCE)):
            kept = []
            for question, answers in group:
                right = sum(answer["correct"] for answer in answers)
                good = _first_good(question, answers, tokenizer, max_tokens, control)
                outcome = "kept" if good is not None else _lost(answers, control)
                counts[outcome] += 1
                asked[right] += 1
                kept_of[right] += good is not None
                read += question["prompt_tokens"]
                written += sum(answer["tokens"] for answer in answers)
                if good is not None:
                    kept.append(question | good)
            kept_file.write_table(pa.Table.from_pylist(kept, KEPT_SCHEMA))
            rows = [answer for _, answers in group for answer in answers]
            answers_file.write_table(pa.Table.from_pylist(rows, ANSWERS))
    if not counts["kept"]:
        raise UserError(
            f"none of the {len(questions)} questions has an answer to keep ({counts['no_verified_answer']} have no "
            f"right one, {counts['too_long']} none that ended within {recipe.max_new_tokens} tokens and fits "
            f"filter.max_tokens {max_tokens} with its question); raise generate.samples or generate.max_new_tokens, or "
            "let a better model answer."
        )
    table = [[reason, counts[reason], meaning] for reason, meaning in REASONS.items()]
    table += [["kept", counts["kept"], "trained on"], ["read", len(questions), "all questions of the data stage"]]
    write_csv(out / "drops.csv", ["reason", "rows", "meaning"], table)
    shares = [[n, n / recipe.samples, asked[n], kept_of[n]] for n in range(recipe.samples + 1)]
    write_csv(out / "difficulty.csv", ["right", "share", "questions", "kept"], shares)
    spent = {
        "read_tokens": read,  # each prompt once
        "written_tokens": written,
        "parameters": parameters,
        "flops": 2.0 * parameters * (read + written),  # of forward passes, as scalpel/cost counts them
    }
    write_atomically(out / "spent.json", json.dumps(spent, indent=1) + "\n")


def _lost(answers: list[dict], control: re.Pattern) -> str:
    """Why none of a question's answers is kept, a key of REASONS."""
    right = [answer for answer in answers if answer["correct"]]
    if not right:
        return "no_verified_answer"
    return "special_token" if all(control.search(answer["completion"]) for answer in right) else "too_long"


def _first_good(
    question: dict, answers: list[dict], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None, control: re.Pattern
) -> dict | None:
    """trace and tokens of the first answer that can be trained on."""
    for answer in answers:
        if answer["correct"] and answer["ended"] and not control.search(answer["completion"]):
            text = render(tokenizer, question["problem"], answer["completion"])
            tokens = len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False))
            if max_tokens is None or tokens <= max_tokens:
                return {"trace": answer["completion"], "tokens": tokens}
    return None
