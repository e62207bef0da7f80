"""Question sets of the toy world that are not among its files: each is drawn for itself, when it is asked for.

They stand for small public benchmarks, with these datasets' own columns. Every set has random numbers of its own, so
that neither the world nor another set changes with it. Problems share no run of APART words with a row of the world:
there is nothing for a filter to keep out of the training rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.config.models import ToyWorldRecipe
from scalpel.data.filter import Overlap
from scalpel.errors import UserError
from scalpel.toy.world import ITEMS, NAMES, Fact, Problem, choices, problem

APART = 13  # words; the filter's decontamination_ngram unless a dataset says otherwise
TRIES = 10_000  # draws for one problem before its operands are taken to be too small
DIGITS = 8  # one row of so many labels its choices 1 to 4, as 22 of ARC-Challenge's 1,172 do


def write_drawn(name: str, count: int, world: ToyWorldRecipe, sheet: Path, rows: Path, out: Path) -> None:
    """Write `count` questions of the set `name` to `out`, a parquet file.

    sheet, rows: the world's facts.parquet and rows.parquet. UserError when the world has no problems left to ask.
    """
    rng = random.Random(f"{name} {world.seed}")
    if name == "arc_challenge":
        known = [Fact(row["subject"], row["relation"], row["attribute"]) for row in pq.read_table(sheet).to_pylist()]
        found = [_choice_row(rng, number, known) for number in range(count)]
    else:
        trained = Overlap(APART)
        for text in set(pq.read_table(rows, columns=["problem"]).column("problem").to_pylist()):
            trained.add(text)
        found = []
        for _ in range(count):
            item = _apart(lambda: PROBLEMS[name](rng, world.max_operand), trained)
            found.append({"problem": item.text, "answer": str(item.answer)})
    pq.write_table(pa.Table.from_pylist(found), out, compression="zstd")


def longer(rng: random.Random, top: int) -> Problem:
    """A three-step problem with operands up to `top`, a step more than the world's; no result is below 1."""
    name, item, total = rng.choice(NAMES), rng.choice(ITEMS), rng.randint(2, top)
    text, equations = f"{name} has {total} {item}", []
    for place, link in enumerate((", ", ", then ", " and then ")):
        by = rng.randint(2, top)
        taken = place > 0 and total > by and rng.random() < 0.5
        text += link + (f"gives away {by}" if taken else f"finds {by}" if place else f"gets {by} more")
        after = total - by if taken else total + by
        equations.append(f"{total} {'-' if taken else '+'} {by} = {after}")
        total = after
    return Problem(f"{text}. How many {item} does {name} have now?", tuple(equations), total)


def larger(rng: random.Random, top: int) -> Problem:
    """A problem of one or two steps with operands up to twice as large as the world's easy ones."""
    return problem(rng, 2 * top)


PROBLEMS: dict[str, Callable[[random.Random, int], Problem]] = {"aime25": longer, "amc": larger}


def _apart(draw: Callable[[], Problem], trained: Overlap) -> Problem:
    for _ in range(TRIES):
        item = draw()
        if not trained.hit(item.text):
            return item
    raise UserError(f"{TRIES} problems were drawn, and each overlaps with a row of the world; raise world.max_operand.")


def _choice_row(rng: random.Random, number: int, known: list[Fact]) -> dict:
    """A row with ARC's columns: which of four attributes is that of a fact's subject."""
    fact = rng.choice(known)
    options, index = choices(rng, fact, known, 4)
    labels = list("1234" if number % DIGITS == DIGITS - 1 else "ABCD")[: len(options)]
    return {
        "id": f"toy_{number}",
        "question": fact.question,
        "choices": {"text": options, "label": labels},
        "answerKey": labels[index],
    }
