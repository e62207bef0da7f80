"""Which rows each optimizer step asks, from the one materialised order, and at which steps checkpoints are saved."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from scalpel.errors import UserError


class Questions(NamedTuple):
    """Kept rows by number, and the order's rows with their epochs, all of one length."""

    rows: dict[int, dict[str, Any]]
    ordered: np.ndarray
    epochs: np.ndarray

    def until_epoch(self, count: int) -> np.ndarray:
        """The order's rows of the first `count` epochs; UserError when it has fewer."""
        there = int(self.epochs.max()) + 1 if len(self.epochs) else 0
        if count > there:
            raise UserError(f"the question order holds {there} epochs, {count} are needed; raise the scale's `epochs`.")
        return self.ordered[self.epochs < count]


def read_questions(kept: Path, order: Path) -> Questions:
    """The rows of kept.parquet in the order of order.parquet; UserError when one names rows the other lacks."""
    rows = {row["row"]: row for row in pq.read_table(kept).to_pylist()}
    table = pq.read_table(order)
    ordered = table.column("row").to_numpy()
    unknown = set(ordered.tolist()) - rows.keys()
    if unknown:
        raise UserError(f"{order} names row {min(unknown)}, which {kept} does not hold; they are not of one run.")
    if not len(ordered):
        raise UserError("the question order is empty: the filter kept no row; loosen `filter` or check the source.")
    return Questions(rows, ordered, table.column("epoch").to_numpy())


def by_count(ordered: np.ndarray, size: int, steps: int | None) -> list[list[int]]:
    """Rows of each step, `size` at a time: step i starts where step i - 1 ended.

    With `steps` there are so many whole ones; without, the last step takes what is left.
    """
    return _steps(ordered, dict.fromkeys(ordered.tolist(), 1), size, steps)


def by_tokens(ordered: np.ndarray, lengths: list[int], budget: int, steps: int | None) -> list[list[int]]:
    """Rows of each step: consecutive ones whose tokens first reach `budget`. `lengths`: tokens of each ordered row."""
    return _steps(ordered, dict(zip(ordered.tolist(), lengths, strict=True)), budget, steps)


def _steps(ordered: np.ndarray, weights: dict[int, int], enough: int, steps: int | None) -> list[list[int]]:
    """Rows of each step: in order, until their weights reach `enough`; with `steps`, so many whole ones.

    A step that goes across the end of an epoch may meet a row that it holds already: that one is put off to the next
    step, so that no step holds a row twice unless it is larger than an epoch.
    """
    left: deque[int] = deque(ordered.tolist())
    found: list[list[int]] = []
    while left and (steps is None or len(found) < steps):
        rows: list[int] = []
        held: set[int] = set()
        put_off: deque[int] = deque()
        total = 0
        while total < enough and (left or put_off):
            again = len(held) == len(weights)  # every row is in the step: it begins over
            if put_off and (again or not left):
                row = put_off.popleft()
            else:
                row = left.popleft()
                if row in held and not again:
                    put_off.append(row)
                    continue
            rows.append(row)
            held.add(row)
            total += weights[row]
        left.extendleft(reversed(put_off))
        if total >= enough or steps is None:
            found.append(rows)
    if steps is not None and len(found) < steps:
        raise UserError(
            f"the question order feeds {len(found)} steps, not {steps}; raise the scale's `epochs` or lower `steps`."
        )
    return found


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """`count` steps at which checkpoints are saved, the last one included.

    The paper's rule, every ceil(steps / count) steps and the last (571 -> 29, 58, ..., 551, 571), where it
    gives `count` of them; else the nearest even spacing.
    """
    if steps < count:
        raise UserError(f"{count} checkpoints do not fit into {steps} steps; lower `checkpoints` or train longer.")
    every = math.ceil(steps / count)
    paper = [*range(every, steps, every), steps]
    return paper if len(paper) == count else [round(i * steps / count) for i in range(1, count + 1)]
