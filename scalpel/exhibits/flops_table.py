"""FLOPs of each run by three accountings, side by side, with what they are spent on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.exhibits import flops

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.results import Results

READS = flops.READS
PUBLISHED = flops.PUBLISHED
CODE = ("exhibits/flops.py",)
Options = flops.Options


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, of, printed, by the paper's accounting, counted, measured, and parts of what is counted; where a
    server wrote completions also what of `measured` is counted instead."""
    frame = flops.table(results, options)
    names = {"paper": "by the paper's accounting", flops.SERVED: "of measured: counted, as a server wrote it"}
    names |= flops.PARTS
    names |= {f"{old} ±": f"{new} ±" for old, new in names.items()}
    order = ["run", "of", "printed", "paper", "counted", "measured", flops.SERVED, *flops.PARTS]
    columns = [c for name in order for c in (name, f"{name} ±") if c in frame and frame[c].notna().any()]
    return frame[columns].rename(columns=names)
