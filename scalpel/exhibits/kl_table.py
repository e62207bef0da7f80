"""KL of the last checkpoints with standard errors, beside the published values, in nats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.exhibits.options import ComparedOptions

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.results import Results

READS = ("kl",)
PUBLISHED = ("kl",)
Options = ComparedOptions


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row per run and measure; columns all positions, solution only, each with its ±, and published.

    Means over seeds (uncertainty.standard_error). Where all runs are shown, published ones that are not ours follow.
    """
    import pandas as pd

    from scalpel.exhibits.results import final
    from scalpel.exhibits.uncertainty import joined

    found = results.compared(options.reference)
    last = final(found.kl())
    curves = results.published.get("kl", {}) if options.reference == "base" else {}
    published = {run: curve["values"][-1] for run, curve in curves.items()}
    first = next(iter(last["part"]))  # the measure that published values are of
    columns = {"all positions": "kl", "solution only": "kl_solution"}
    means = {
        name: joined(last, ["run", "part"], column, f"{column}_stderr").set_index(["run", "part"])
        for name, column in columns.items()
    }
    others = [] if options.runs else [run for run in published if run not in found.runs]
    rows = []
    for run, measure in [*means["all positions"].index, *((run, first) for run in others)]:
        row = {"run": run, "measure": measure}
        for name, column in columns.items():
            there = (run, measure) in means[name].index
            value, error = means[name].loc[(run, measure), [column, "stderr"]] if there else (float("nan"),) * 2
            row |= {name: value, f"{name} ±": error}
        rows.append(row | {"published": published.get(run, float("nan")) if measure == first else float("nan")})
    return pd.DataFrame(rows)
