"""Average indirect effects of restored states as heat maps, position classes x layers (paper figure 12).

One panel for each kind of state, one row of panels for each trace: seeds of a run that share a trace share its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.analysis.trace import KINDS, POSITIONS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.options import ExhibitOptions
    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("trace",)
COLUMNS = ["kind", "position", "layer", "aie", "stderr", "low", "high", "facts"]
TITLES = {"hidden": "output of a layer", "mlp": "MLP outputs", "attention": "attention outputs"}
COLOURS = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}


def table(results: Results, options: ExhibitOptions) -> pd.DataFrame:
    """run, seed, kind, position, layer (from 0), AIE, its standard error, 95% interval and number of facts."""
    import pandas as pd

    kept: list[pd.DataFrame] = []
    for _, of_run in results.read("trace", "aie.parquet", COLUMNS).groupby("run", sort=False):
        distinct: dict[str, pd.DataFrame] = {}
        for _, of_seed in of_run.groupby("seed", sort=False):
            distinct.setdefault(of_seed[COLUMNS].to_csv(index=False), of_seed)
        kept += distinct.values()
    return pd.concat(kept, ignore_index=True)[["run", "seed", *COLUMNS]]


def draw(frame: pd.DataFrame, options: ExhibitOptions, style: Style) -> Figure:
    """Colours are scaled in each panel: a module's effects are far smaller than those of a whole layer."""
    import matplotlib

    traces = list(frame.groupby(["run", "seed"], sort=False))
    runs = [run for (run, _), _ in traces]
    positions = [position for position in POSITIONS if position in set(frame["position"])]
    across = 1 if options.page_columns == 1 else len(KINDS)
    down = len(KINDS) // across
    figure = style.figure(9.5, 0.9 + 2.1 * len(traces) * down, "Average indirect effect of restored states")
    panels = figure.subplots(len(traces) * down, across, squeeze=False, sharey=True).reshape(len(traces), len(KINDS))
    for row, ((run, seed), trace) in enumerate(traces):
        for axes, kind in zip(panels[row], KINDS, strict=True):
            of_kind = trace[trace["kind"] == kind]
            values = of_kind.pivot(index="position", columns="layer", values="aie").reindex(positions)
            image = axes.imshow(
                values.to_numpy(), aspect="auto", interpolation="nearest", vmin=min(0, values.min(axis=None)),
                cmap=matplotlib.colormaps[COLOURS[kind]].with_extremes(bad="#E4E4E4"),
            )  # fmt: skip
            figure.colorbar(image, ax=axes, label="AIE" if kind == KINDS[-1] else "")
            axes.grid(False)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_yticks(range(len(positions)), [f"{position} token" for position in positions])
            if row == 0 or across == 1:
                axes.set_title(TITLES[kind])
            if row == len(traces) - 1 and (across > 1 or kind == KINDS[-1]):
                axes.set_xlabel("layer (from 0)")
        if len(traces) > 1:
            name = options.labels.get(run, run)
            panels[row, 0].set_ylabel(f"{name}, seed {seed}" if runs.count(run) > 1 else name)
    return figure
