"""Recipes that grow: a field added later leaves every digest alone, a changed default does not."""

import json
from pathlib import Path

import pytest
from pydantic import create_model

from scalpel.config.load import load
from scalpel.config.types import Recipe, later, unhashed
from scalpel.methods import METHODS
from scalpel.plan import Plan
from scalpel.stages import STAGES

WORKFLOW = Path(__file__).resolve().parent.parent / "workflow"
GOLDEN = Path(__file__).parent / "golden_digests.json"
FULL = "scalpel_vs_hammer_full"
SCALES = ("laptop", "workstation", "gpu", "cluster")


class Inner(Recipe):
    a: int = 1


class Outer(Recipe):
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    rate: float = 0.5


class GrownInner(Inner):
    b: str = later("x", as_before="x")


class Grown(Outer):
    inner: GrownInner = GrownInner()
    many: dict[str, GrownInner] = {}
    extra: int | None = later(None, as_before=None)
    note: str = unhashed("")


def test_a_later_field_at_its_as_before_value_is_left_out():
    old = Outer(many={"k": Inner(a=2)}).identity()
    assert Grown(many={"k": GrownInner(a=2)}, note="any").identity() == old
    assert Grown(extra=3).identity() == Outer().identity() | {"extra": 3}
    assert Grown(inner=GrownInner(b="y")).identity()["inner"] == {"a": 1, "b": "y"}


def test_a_changed_default_enters_the_digest():
    changed = create_model("Changed", __base__=Outer, extra=(int | None, later(7, as_before=None)))
    assert changed().identity() == Outer().identity() | {"extra": 7}
    assert changed(extra=None).identity() == Outer().identity()


def test_a_recipe_is_read_back_as_it_was_made():
    """What an identity leaves out is "as before", not the default of today."""
    changed = create_model("Changed", __base__=Outer, extra=(int | None, later(7, as_before=None)))
    assert changed.of_identity(Outer().identity()).extra is None
    assert changed().extra == 7 and changed.of_identity(changed().identity()).extra == 7
    assert Grown.of_identity(Outer(many={"k": Inner()}).identity()).many["k"].b == "x"


@pytest.mark.parametrize("method", METHODS)
def test_one_more_field_forks_no_run(method):
    """Every method's recipe may grow."""
    recipe = METHODS[method].Recipe
    run = recipe(learning_rate=1e-4, **({"steps": 40} if "steps" in recipe.model_fields else {}))
    grown = create_model("Grown", __base__=recipe, tomorrow=(bool, later(False, as_before=False)))
    assert grown(**run.model_dump()).identity() == run.identity()


def digests(scale: str) -> dict[str, str]:
    """Of every step but the audit, whose name follows from the installed packages."""
    steps = Plan(load({"scale": scale}, WORKFLOW), WORKFLOW).steps.values()
    return {f"{step.stage}/{step.name}": step.digest for step in steps if step.stage != "audit"}


@pytest.mark.parametrize("scale", SCALES)
def test_golden_digests(scale):
    """Names of real results. A digest changes by recipe value, input or stage version only, and then here, too:

    python -m tests.test_recipes writes the file again.
    """
    assert digests(scale) == json.loads(GOLDEN.read_text())[scale]


def full_runs(scale: str) -> dict[str, str]:
    """Of the runs of the full study."""
    steps = Plan(load({"scale": scale, "studies": [FULL]}, WORKFLOW), WORKFLOW).steps.values()
    return {f"{step.stage}/{step.name}": step.digest for step in steps if step.stage in ("train", "trace", "generate")}


@pytest.mark.parametrize("scale", SCALES)
def test_golden_digests_of_the_full_study(scale):
    assert full_runs(scale) == json.loads(GOLDEN.read_text())[f"{scale}, {FULL}"]


def test_golden_digests_hold_every_stage_that_a_study_plans():
    golden = json.loads(GOLDEN.read_text())
    found = {name.split("/")[0] for scale in golden.values() for name in scale}
    assert set(STAGES) - found == {"common", "given", "structure", "audit"}  # of no study here; and the gate


if __name__ == "__main__":
    golden = {scale: digests(scale) for scale in SCALES} | {f"{scale}, {FULL}": full_runs(scale) for scale in SCALES}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
