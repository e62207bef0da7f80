"""What updates look like as training proceeds: sparsity, rank, spectrum, and which entries two seeds change alike.

Definitions stand in scalpel/analysis/structure.py. Of the matrices of a checkpoint are shown: the share of all their
entries that is unchanged; the means over those that changed of the ranks, the rank at an energy as a share of the full
one; the means over all of spectral drift and of the larger of the two angles. Overlap: of the entries that one seed
changed, the share that the run's first seed changed, too, the mean of both directions; dashed, the share expected of
two sets that know nothing of each other but how many entries of each matrix they hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("structure",)
PANELS = 4  # in a row
MEASURES = {
    "unchanged": "entries unchanged, as stored",
    "unchanged_bf16": "entries unchanged in bfloat16",
    "overlap": "changed entries two seeds share",
    "overlap_bf16": "the same in bfloat16",
    "stable_rank": "stable rank of the update",
    "energy_rank": "rank at an energy / full rank",
    "spectral_drift": "spectral drift",
    "angle": "largest principal angle (degrees)",
}
SHARES = ("unchanged", "unchanged_bf16", "overlap", "overlap_bf16", "energy_rank")


class Options(ExhibitOptions):
    measures: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(MEASURES)  # a panel each


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, x, measure, value, and expected: of overlap, the value of unrelated sets."""
    import pandas as pd

    from scalpel.config.load import nearest
    from scalpel.errors import UserError

    for measure in options.measures:
        if measure not in MEASURES:
            raise UserError(f"structure: measures: {measure!r} is not measured{nearest(measure, MEASURES)}.")
    rows = []
    for key, matrices in results.structure().groupby(["run", "seed", "step"], sort=False):
        for measure, (value, expected) in of_checkpoint(matrices).items():
            if measure in options.measures and value == value:
                rows.append((*key, measure, value, expected))
    frame = pd.DataFrame(rows, columns=["run", "seed", "step", "measure", "value", "expected"])
    if not len(frame):
        raise UserError("structure: none of its measures is there; overlap needs a run with several seeds.")
    return results.placed(frame, options.x)[["run", "seed", "step", "x", "measure", "value", "expected"]]


def of_checkpoint(matrices: pd.DataFrame) -> dict[str, tuple[float, ...]]:
    """Measure -> (value, expected) over one checkpoint's matrices, a frame of structure.parquet's rows; nan: none."""
    none, weights = float("nan"), matrices["entries"] / matrices["entries"].sum()
    found: dict[str, tuple[float, ...]] = {
        name: ((matrices[name] * weights).sum(), none) for name in ("unchanged", "unchanged_bf16")
    }
    found |= {f"overlap{suffix}": _overlap(matrices, weights, suffix) for suffix in ("", "_bf16")}
    found["stable_rank"] = matrices["stable_rank"].mean(), none
    found["energy_rank"] = (matrices["energy_rank"] / matrices["full_rank"]).mean(), none
    found["spectral_drift"] = matrices["spectral_drift"].mean(), none
    return found | {"angle": (matrices[["angle_left", "angle_right"]].max(axis=1).mean(), none)}


def _overlap(matrices: pd.DataFrame, weights: pd.Series, suffix: str) -> tuple[float, ...]:
    one, other, both = (matrices[f"{name}{suffix}"] for name in ("changed", "other_changed", "both_changed"))
    sizes = (one * weights).sum(), (other * weights).sum()
    if both.isna().any() or not min(sizes):
        return float("nan"), float("nan")
    common, chance = (both * weights).sum(), (one * other * weights).sum()
    return tuple(sum(part / size for size in sizes) / 2 for part in (common, chance))


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """A panel per measure, means over seeds with a band of one standard error between them."""
    shown = [measure for measure in options.measures if measure in set(frame["measure"])]
    columns = style.in_a_row(min(len(shown), PANELS))
    rows = -(-len(shown) // columns)
    figure = style.figure(2.9 * columns + 0.4, 1.0 + 2.6 * rows, "Structure of updates")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, measure in zip(panels, shown, strict=False):
        part = frame[frame["measure"] == measure]
        style.lines(axes, part, "value")
        if part["expected"].notna().any():
            style.lines(axes, part, "expected", points=False, linestyle=(0, (3, 1.5)))
        axes.set_title(style.wrapped(MEASURES[measure]))
        if measure in SHARES:
            axes.set_ylim(-0.02, 1.02)
        elif options.log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    style.legend(figure, loc="outside lower center", ncols=min(len(style.runs), 5))
    return figure
