"""FLOPs of each run by three accountings: the paper's, counted, and measured, beside the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("train",)
PUBLISHED = ("flops",)
ACCOUNTINGS = {"paper": "the paper's accounting", "counted": "counted", "measured": "measured"}
SERVED, HATCH = "served", "////"
PARTS = {"trained": "counted: forward and backward", "scored": "log-probabilities", "written": "written"}


class Options(ExhibitOptions):
    published_runs: bool = True  # rows of the published methods, recomputed from their sizes


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row per run, and per published method (column `of`: here, published); FLOPs, means over seeds with ± between.

    paper: by the paper's accounting; for published methods exactly, beside what is `printed`. counted: of it trained,
    scored, written. measured: from sampled steps; where a server wrote the completions, which is not seen, these are
    taken as counted, and `served` is what they come to (nan elsewhere).
    """
    import pandas as pd

    from scalpel.exhibits import spent
    from scalpel.exhibits.uncertainty import joined

    names = [*ACCOUNTINGS, SERVED, *PARTS]
    rows = [{"run": r.run, "seed": r.seed} | spent.totals(r) for r in results.of("train")]
    ours = pd.DataFrame(rows)
    columns: dict[str, pd.Series] = {}
    for name in names:
        of = joined(ours, ["run"], name).set_index("run")
        columns |= {name: of[name], f"{name} ±": of["stderr"]}
    found = pd.DataFrame(columns).reset_index().rename(columns={"index": "run"})
    found.insert(1, "of", "here")
    found[SERVED] = found[SERVED].where(found[SERVED] > 0)
    if options.published_runs and results.published.get("flops"):
        found = pd.concat([found, pd.DataFrame(published(results.published["flops"]))], ignore_index=True)
    return found


def published(numbers: dict) -> list[dict]:
    """Rows of the published methods: printed, the paper's accounting exactly, and counted."""
    from scalpel.cost.flops import Multiplied, Published
    from scalpel.cost.shape import Shape

    model, rows = Multiplied.of(Shape.of_config(numbers["model"])), []
    for run, sizes in numbers["methods"].items():
        method = Published(**sizes)
        exact = method.parts(numbers["parameters"], numbers["trace_tokens"])["total"]
        parts = method.counted(model, numbers["trace_tokens"], numbers["prompt_tokens"])
        row = {"run": run, "of": "published", "printed": method.printed, "paper": exact, "counted": sum(parts.values())}
        rows.append(row | parts)
    return rows


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """Ours on the left, the published methods, whose sizes are others, on the right."""
    import numpy as np
    from matplotlib.patches import Patch

    colors = {"paper": "#9AA5B1", "counted": "#0072B2", "measured": "#E69F00", "printed": "#D0D0D0"}
    ours, theirs = frame[frame["of"] == "here"], frame[frame["of"] == "published"]
    height = 0.9 + 0.34 * max(len(ours), len(theirs) + 1)
    figure = style.figure(8.4 if len(theirs) else 5.6, height, "Training FLOPs by three accountings")
    panels = figure.subplots(1, 1 + bool(len(theirs)), squeeze=False, width_ratios=[3, 2][: 1 + bool(len(theirs))])[0]
    for axes, shown, bars in (
        (panels[0], ours, list(ACCOUNTINGS)),
        (panels[-1], theirs, ["printed", "paper", "counted"]),
    ):
        if not len(shown):
            continue
        width = 0.8 / len(bars)
        for place, name in enumerate(bars):
            at = np.arange(len(shown)) + (place - (len(bars) - 1) / 2) * width
            drawn = axes.barh(at, shown[name], height=width * 0.92, color=colors[name])
            for bar, served in zip(drawn, shown.get(SERVED, []), strict=False):
                if name == "measured" and served > 0:
                    bar.set(hatch=HATCH, edgecolor="white", linewidth=0)
        axes.set_yticks(range(len(shown)), [style.label(run) for run in shown["run"]])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        axes.set_xlabel("FLOPs")
    panels[0].set_title("here")
    if len(theirs):
        panels[1].set_title("published")
    names = {"printed": "as printed"} | ACCOUNTINGS
    used = [name for name in names if name in frame and frame[name].notna().any()]
    handles = [Patch(color=colors[n], label=names[n]) for n in used]
    if SERVED in ours and ours[SERVED].notna().any():
        label = "measured, but for what a server wrote"
        handles.append(Patch(facecolor=colors["measured"], hatch=HATCH, edgecolor="white", linewidth=0, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure
