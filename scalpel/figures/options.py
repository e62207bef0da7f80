"""What a study's YAML may say about a figure: style, and which runs are shown.

The plan imports this module, so neither torch nor matplotlib is imported here.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from scalpel.config import Strict, _validate

Inches = Annotated[float, Field(gt=1, le=40)]


class FigureOptions(Strict):
    """Options common to all figures; what is left out takes the figure's own default."""

    title: str | None = None
    width_inches: Inches | None = None
    height_inches: Inches | None = None
    font_size: Annotated[float, Field(ge=5, le=24)] = 9.0  # points
    dpi: Annotated[int, Field(ge=50, le=600)] = 160  # of the PNG
    palette: Literal["okabe_ito", "tol_bright"] = "okabe_ito"  # both colour-blind safe
    runs: tuple[str, ...] = ()  # runs shown, in this order; empty: those of the paper's figure
    labels: dict[str, str] = Field({})  # run -> name in the legend
    log_y: bool = False  # logarithmic value axis; of curves (rewards, loss, KL, norms), never of bars
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.7  # weight of the past in the curves of rewards and loss


def options(raw: dict[str, Any], where: str) -> FigureOptions:
    """Validated options; UserError that names the place `where`, the key and the nearest valid one."""
    return _validate(FigureOptions, raw, where)
