"""Main of scripts/exhibit.py: one figure or table, from its recipe file."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from scalpel import exhibits
from scalpel.errors import UserError
from scalpel.exhibits import drawing, embedded
from scalpel.exhibits.results import Results
from scalpel.exhibits.style import Style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

GROWN = 4  # times that a figure is made larger, where its parts do not fit


def main() -> None:
    drawing.run(render)


def render(path: Path) -> None:
    """Make the files of the exhibit whose recipe file is `path`: the same bytes on every run.

    Raises UserError when a result is missing, damaged or cannot be shown, and when the exhibit's code has changed
    since the recipe was written.
    """
    opened = drawing.opened(path)
    recipe = opened.recipe
    kind = exhibits.find(recipe["kind"], opened.results.parent, opened.name)
    opened.check_code(kind.code)
    options = kind.options(recipe["options"], opened.name)
    results = Results.of_entries(opened.entries, opened.results, recipe.get("published"))
    frame = kind.module.table(results, options)
    if not len(frame):
        raise UserError(f"{opened.name}: there is nothing to show: its table has no rows.")
    provenance = opened.provenance()
    content = {"csv": _csv(frame, provenance)}
    if kind.folder == "figures":
        style = Style(recipe["looks"], results.runs, options)
        content |= _pictures(kind, frame, style, options.title or opened.name, provenance)
    drawing.put(opened, {f"{opened.name}.{suffix}": made for suffix, made in content.items()})


def _csv(frame: pd.DataFrame, provenance: dict) -> bytes:
    """Numbers in full. The first line is a comment; what the table shows stands in the record beside it."""
    short = {key: value for key, value in provenance.items() if key != "entries"}
    texts = frame.select_dtypes(exclude="number")
    torn = any("\r" in cell for name in texts for cell in texts[name] if isinstance(cell, str))
    quoting = csv.QUOTE_NONNUMERIC if torn else csv.QUOTE_MINIMAL  # which leaves \r alone
    rows = frame.to_csv(index=False, lineterminator="\n", quoting=quoting)
    return f"# {embedded.text_of(short)}\n".encode() + rows.encode()


def _pictures(kind: exhibits.Kind, frame: pd.DataFrame, style: Style, title: str, provenance: dict) -> dict[str, bytes]:
    """The figure in each of the other formats, by suffix."""
    pictures = {}
    with style.applied():
        figure = kind.module.draw(frame, style.options, style)
        _grown(figure, style)
        for suffix in kind.suffixes:
            if suffix != "csv":
                file = io.BytesIO()
                about = embedded.metadata(suffix, title, provenance)
                figure.savefig(file, format=suffix, metadata=about, dpi=style.options.dpi)
                pictures[suffix] = file.getvalue()
    return pictures


def _grown(figure: Figure, style: Style) -> None:
    """Make a figure larger until its parts fit: higher, and wider where no width was asked for."""
    fixed = style.options.width_inches or style.options.page_columns
    for _ in range(GROWN):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            figure.draw_without_rendering()
        if not any("constrained_layout not applied" in str(warning.message) for warning in said):
            return
        width, height = figure.get_size_inches()
        figure.set_size_inches(width if fixed else 1.25 * width, 1.25 * height)
