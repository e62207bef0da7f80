"""What a check found."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, ERROR = "ok", "warning", "error"
NAMED = 6  # items of a list that a sentence names


class Finding(NamedTuple):
    name: str
    level: str  # ok, warning or error
    sentence: str


def some(items: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more
