"""Tables for the page: cells as text, and how numbers are written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    import pandas as pd

ERROR = " ±"  # what the name of a column of standard errors ends with
NONE = "–"


@dataclass(frozen=True)
class Column:
    """numeric: right-aligned. faint: somebody else's numbers."""

    name: str
    numeric: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Table:
    """rows: one text per column. faint: indices of rows with somebody else's numbers."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    faint: frozenset[int] = frozenset()

    @property
    def heading(self) -> int | None:
        """The column whose cells name their rows: that of runs, else the first one, where it is no number."""
        names = [column.name for column in self.columns]
        place = names.index("run") if "run" in names else 0
        return None if not names or self.columns[place].numeric else place


def link(place: Path, page: Path | None, text: str) -> str:
    """`text`, as a link from the folder of a page to a file or folder, where that is there."""
    if page is None or not place.exists():
        return text
    return Markup('<a href="{}">{}</a>').format(Path(os.path.relpath(place, page)).as_posix(), text)


def of_csv(path: Path, label: Callable[[str], str]) -> Table:
    """The csv file of a table exhibit.

    A column and the one called <column> ± become one, value ± standard error. Columns called published... and rows
    whose column `of` says published are faint. label: the name people use for a run, which may be a column's name or
    stand in a column `run` or `best`, or, several joined by "and", in a column `whose`.
    """
    import pandas as pd

    frame = pd.read_csv(path, skiprows=1, dtype=str, keep_default_na=False).apply(_typed)
    for name in {"run", "best"} & set(frame):
        frame[name] = frame[name].map(label)
    if "whose" in frame:
        frame["whose"] = [" and ".join(map(label, runs.split(" and "))) for runs in frame["whose"]]
    names = [name for name in frame.columns if not (name.endswith(ERROR) and name.removesuffix(ERROR) in frame)]
    columns = [
        Column(label(name), pd.api.types.is_numeric_dtype(frame[name]), name.startswith("published")) for name in names
    ]
    texts = [texts_of(frame[name], frame.get(name + ERROR)) for name in names]
    faint = frozenset(i for i, of in enumerate(frame.get("of", ())) if of == "published")
    return Table(columns, list(zip(*texts, strict=True)), faint)


def _typed(cells: pd.Series) -> pd.Series:
    """A column of a csv as numbers, where all of its cells are written as numbers are; what is empty is nan."""
    import numpy as np
    import pandas as pd

    there = [cell for cell in cells if cell]
    for kind in (int, float):
        if there and all(_is(kind, cell) for cell in there):
            whole = kind is int and len(there) == len(cells)
            return pd.Series([int(c) if whole else float(c or "nan") for c in cells], cells.index)
    return cells.replace("", np.nan).astype(object)


def _is(kind: type, cell: str) -> bool:
    try:
        return repr(kind(cell)) == cell
    except ValueError:
        return False


def texts_of(values: pd.Series, errors: pd.Series | None = None) -> list[str]:
    """A column's cells; with standard errors, each with the decimals that two digits of its error call for."""
    if errors is None:
        return [text_of(value) for value in values.tolist()]
    return [_measured(value, error) for value, error in zip(values.tolist(), errors.tolist(), strict=True)]


def _measured(value: float, error: float) -> str:
    if math.isnan(value) or not error > 0:
        return text_of(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def text_of(value: object) -> str:
    """One value of a recipe or of a table: floats with four digits, what is not there as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text_of, value)) or NONE
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    return f"{value:,}" if value >= 10_000 else str(value)
