"""Relative weight change of the last checkpoints by projection, beside the published values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.exhibits.options import ComparedOptions

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.results import Results

READS = ("weight_change",)
PUBLISHED = ("weight_change",)
Options = ComparedOptions


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row per run and projection: mean over layers and seeds, its ± between seeds, its rank, and both published.

    Rank 1 is the projection that changed most.
    """
    import pandas as pd

    from scalpel.exhibits.results import PROJECTIONS, final
    from scalpel.exhibits.uncertainty import joined

    found = results.compared(options.reference)
    last = final(found.weight_change())
    layers = last.groupby(["run", "seed", "projection"], sort=False, as_index=False)["relative"].mean()
    means = joined(layers, ["run", "projection"], "relative")
    numbers = results.published.get("weight_change", {}) if options.reference == "base" else {}
    tables = []
    for run, rows in means.groupby("run", sort=False):
        ours = rows.set_index("projection")
        theirs = pd.DataFrame(numbers.get(run, {}), dtype=float).mean()
        columns = {
            "run": run,
            "projection": pd.Series(PROJECTIONS),
            "relative change": ours["relative"],
            "relative change ±": ours["stderr"],
            "rank": _rank(ours["relative"]),
            "published": theirs,
            "published rank": _rank(theirs),
        }
        tables.append(pd.DataFrame(columns, index=[name for name in PROJECTIONS if name in ours.index]))
    return pd.concat(tables, ignore_index=True)


def _rank(values: pd.Series) -> pd.Series:
    return values.rank(ascending=False, method="min").astype("Int64")
