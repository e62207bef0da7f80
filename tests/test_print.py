"""Every figure of the full study at one and at two columns' width: readable text, panels with room, runs told apart.

Colours are compared as somebody without M cones sees them (deuteranopia): Machado, Oliveira and Fernandes (2009), the
matrix of severity 1 in linear RGB, and CIE 1976 distances in L*a*b* under D65, where 2.3 is just noticeable.
"""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from matplotlib.text import Text

from scalpel.exhibits.style import PALETTE, WIDTHS
from tests import synthetic
from tests.test_exhibits import draw

FULL = "scalpel_vs_hammer_full"
LEAST_POINTS, LEAST_INCHES = 6.0, (0.55, 0.5)  # of text; of a panel, wide and high
LEAST_DISTANCE = 10.0
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])  # D65


def lab(color, seen=((1, 0, 0), (0, 1, 0), (0, 0, 1))) -> np.ndarray:
    """L*a*b* of a colour, seen through a matrix of linear RGB."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = XYZ @ np.clip(np.asarray(seen) @ linear, 0, 1) / WHITE
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other) -> float:
    return float(np.linalg.norm(lab(one, DEUTERANOPIA) - lab(other, DEUTERANOPIA)))


def look(handle) -> tuple:
    """(colour, what else tells it apart) of a legend's line or bar."""
    if isinstance(handle, Patch):
        return handle.get_facecolor(), ("bar", handle.get_hatch() or "")
    marker = handle.get_marker() if handle.get_marker() not in (None, "None", "") else ""
    return handle.get_color(), (marker, handle._unscaled_dash_pattern, handle.get_alpha())


def legends(figure) -> list:
    places = [figure, *figure.subfigs, *figure.axes]
    return [
        found
        for place in places
        for found in [*getattr(place, "legends", ()), getattr(place, "legend_", None)]
        if found
    ]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The full study at laptop scale with made-up results."""
    root = tmp_path_factory.mktemp("full")
    few = {"gsm8k": None, "mmlu_pro": None}
    plan = synthetic.plan_of(root, {"studies": [FULL], "overrides": {"evaluation": {"tasks": few}}})
    synthetic.finish_all(plan, root)
    return plan, root


def figures(plan) -> list[str]:
    return [name for (_, name), d in plan.drawings.items() if d.folder == "figures"]


def test_the_palette_is_told_apart():
    assert distance("#000000", "#FFFFFF") == pytest.approx(100, abs=0.1)
    assert distance("#D00000", "#507000") < np.linalg.norm(lab("#D00000") - lab("#507000")) / 2  # red and green
    for one, other in itertools.combinations(PALETTE, 2):
        assert distance(one, other) >= LEAST_DISTANCE, (one, other)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2])
def test_text_panels_and_looks_at_the_width_of_columns(full, columns, tmp_path):
    problems = []
    for name in figures(full[0]):
        figure = draw(full, name, FULL, page_columns=columns)
        where = f"{name}, {columns} columns"
        assert figure.get_size_inches()[0] == WIDTHS[columns], where
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        small = {t.get_text(): t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()}
        problems += [f"{where}: {t!r} has {s} points" for t, s in small.items() if s < LEAST_POINTS]
        assert not [axes for axes in figure.axes if axes.get_visible() and not axes.has_data()], (
            f"{where}: an empty panel"
        )
        for axes in (axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"):
            box = axes.get_window_extent()
            inches = box.width / figure.dpi, box.height / figure.dpi
            if any(have < least for have, least in zip(inches, LEAST_INCHES, strict=True)):
                problems.append(f"{where}: a panel of {inches[0]:.2f} x {inches[1]:.2f} inches")
            title, name = axes.title.get_window_extent(), axes.yaxis.label.get_window_extent()
            if title.width > 1.4 * box.width or name.height > 1.4 * box.height:
                problems.append(f"{where}: {axes.get_title()!r} or {axes.get_ylabel()!r} reaches beyond its panel")
        for legend in legends(figure):
            box = legend.get_window_extent()
            if box.x0 < -1 or box.x1 > figure.bbox.width + 1 or box.y0 < -1:
                problems.append(f"{where}: the legend is cut off")
            for one, other in itertools.combinations(legend.legend_handles, 2):
                (a, mark), (b, other_mark) = look(one), look(other)
                if mark == other_mark and distance(a, b) < LEAST_DISTANCE:
                    problems.append(f"{where}: {one.get_label()} and {other.get_label()} look alike")
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_wrong_completions_with_the_most_tags_stand_first(full):
    from tests.test_exhibits import table

    frame = table(full, "hacked", FULL, count=2, characters=20)
    of_tags = frame[frame["run"] == "grpo_tags"]
    assert of_tags["accuracy"].tolist() == [0.0, 0.0] and of_tags["tags"].tolist() == [4, 4]
    assert of_tags["step"].is_monotonic_decreasing and of_tags["tag count"].tolist() == [0.25, 0.25]
    assert all(text.startswith("... ") and len(text) == 24 for text in of_tags["completion"])
