"""The section on the set-up: recipes of runs and of benchmarks side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scalpel.report.tables import Column, Table, text_of


class Compared(NamedTuple):
    """differing: fields on which the things compared differ. shared: the others, as `field value`."""

    differing: Table
    shared: list[str]


def compared(recipes: dict[str, dict], what: str, label: Callable[[str], str] = str) -> Compared:
    """Recipes side by side, one column each and one row per field; nested fields with dots in their names."""
    flat = {name: flattened(recipe) for name, recipe in recipes.items()}
    fields = list(dict.fromkeys(field for recipe in flat.values() for field in recipe))
    texts = {field: [text_of(recipe.get(field)) for recipe in flat.values()] for field in fields}
    differing = [(field, *texts[field]) for field in fields if len(set(texts[field])) > 1]
    shared = [f"{field} {texts[field][0]}" for field in fields if len(set(texts[field])) == 1]
    return Compared(Table([Column(what), *(Column(label(name)) for name in recipes)], differing), shared)


def flattened(recipe: dict, above: str = "") -> dict[str, object]:
    """A recipe without nesting: names of inner fields after those of the outer ones, with dots between."""
    flat: dict[str, object] = {}
    for field, value in recipe.items():
        flat |= flattened(value, f"{above}{field}.") if isinstance(value, dict) else {f"{above}{field}": value}
    return flat
