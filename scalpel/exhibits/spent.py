"""FLOPs of trained runs, step by step, by three accountings: the paper's, counted, and measured.

The first two are taken from what a run wrote down of every sequence (scalpel/cost/flops.py has their arithmetic), the
third from flops.parquet: what the sampled steps took (scalpel/methods/meter.py), scaled by what was counted of all
steps and of these. Completions that a server wrote are not seen by the meter: a run's total takes them as counted.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalpel.artifact.checking import checked, manifest_of
from scalpel.artifact.files import RECIPE, below, read_json
from scalpel.config.training import Trainable
from scalpel.cost.flops import Multiplied
from scalpel.cost.shape import Shape
from scalpel.exhibits import files

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.result import Result

KINDS = ("trained", "scored", "written")
PAPER, COUNTED, MEASURED = "paper", "counted", "measured"
SERVED = "served"  # of what is given as measured: what a server wrote, which is not seen and counted instead
COLUMNS = ["step", "row", "origin", "advantage", "prompt_tokens", "completion_length", "prefix_length"]
EXPERT = "expert"


class Model(NamedTuple):
    """The model that a run trains, and the share of its multiplied matrices' entries that the run changes."""

    multiplied: Multiplied
    parameters: int
    share: float


def of_run(step: Path) -> pd.DataFrame:
    """FLOPs of each optimizer step of a trained run's directory.

    Columns step, paper, trained, scored, written (counted), and measured_<kind> (nan where nothing was measured).
    Raises UserError naming the file that is missing or damaged.
    """
    import pandas as pd

    recipe = read_json(step / RECIPE)["recipe"]
    model = _model(step, recipe)
    sequences = pd.concat(_sequences(step, recipe), ignore_index=True)
    count, inside = model.multiplied, sequences["kind"]
    sequences["flops"] = count.forward(sequences["first"], sequences["last"])
    trained = inside == "trained"
    sequences.loc[trained, "flops"] = count.trained(sequences["last"], model.share)[trained]
    sequences["paper"] = model.parameters * sequences["paper_passes"] * sequences["response"]
    log = files.table(step / "log.parquet", ["step"]).sort_values("step")
    steps = log.set_index("step").index
    by_kind = sequences.pivot_table(index="step", columns="kind", values="flops", aggfunc="sum")
    found = by_kind.reindex(index=steps, columns=list(KINDS)).fillna(0.0)
    found.insert(0, PAPER, sequences.groupby("step")["paper"].sum().reindex(steps).fillna(0.0))
    return found.join(_measured(step, found)).reset_index()


def _model(step: Path, recipe: dict) -> Model:
    """Sizes of the base model that the run's manifest names."""
    base = _input(step, "base") / "model" / "config.json"
    shape = Shape.of_config(json.loads(checked(base).read_text()))
    multiplied = Multiplied.of(shape)
    trainable = Trainable.model_validate(recipe.get("trainable") or {})
    if trainable.freeze_mlp_above is not None:  # layers that a trace named
        frozen = read_json(checked(step / "trained.json"))["frozen"]
        layers = {int(name.split(".")[2]) for name in frozen if ".mlp." in name}
        trainable = Trainable(freeze_mlp_layers=tuple(sorted(layers)))
    return Model(multiplied, shape.parameters, shape.trained_matrices(trainable) / multiplied.matrices)


def _input(step: Path, role: str) -> Path:
    return below(step.parents[1], manifest_of(step)["inputs"][role]["directory"])


def _sequences(step: Path, recipe: dict) -> list[pd.DataFrame]:
    """What went through the model: columns step, kind, first and last (tokens), response, paper_passes.

    paper_passes: by the paper's accounting, of the response's tokens; 2 for a forward pass, 6 with a backward one.
    """
    rows = files.table(_input(step, "data") / "kept.parquet", ["row", "tokens", "prompt_tokens"]).set_index("row")
    if not (step / "rollouts.parquet").is_file():
        asked = files.table(step / "questions.parquet", ["step", "row"]).join(rows, on="row")
        return [_made(asked["step"], "trained", 0, asked["tokens"], asked["tokens"] - asked["prompt_tokens"], 6)]
    rollouts = files.table(step / "rollouts.parquet", COLUMNS)
    updates, iterations = recipe.get("updates", 1), recipe.get("iterations", 1)
    last, ends = int(rollouts["step"].max()), rollouts["prompt_tokens"] + rollouts["completion_length"]
    rollouts = rollouts.assign(last=ends, own=rollouts["completion_length"] - rollouts["prefix_length"])
    learnt = rollouts[rollouts["advantage"].notna() | (rollouts["origin"] == EXPERT)]
    total = recipe["steps"]
    found = []
    for again in range(iterations):  # a batch is gone through so many times
        at = learnt["step"] + again * updates
        here = learnt[at <= total].assign(step=at[at <= total])
        found.append(_made(here["step"], "trained", 0, here["last"], here["completion_length"], 6))
    first = (learnt["step"] - 1) // (updates * iterations) * (updates * iterations) + 1  # the batch's first step
    for _ in range((updates * iterations > 1) + bool(recipe.get("beta"))):
        found.append(_made(first, "scored", 0, learnt["last"], learnt["completion_length"], 0))
    own = rollouts[rollouts["origin"] != EXPERT].assign(start=rollouts["prompt_tokens"] + rollouts["prefix_length"])
    batch = (own["step"] - 1) // (updates * iterations) * (updates * iterations) + 1
    found.append(_made(batch, "written", own["start"], own["last"], own["own"], 2))
    prompts = own.assign(step=batch).drop_duplicates(["step", "row", "start"])
    found.append(_made(prompts["step"], "written", 0, prompts["start"], 0, 0))
    if (step / "demonstrations.parquet").is_file():
        shown = files.table(step / "demonstrations.parquet", ["step", "row", "tokens"])
        response = shown["tokens"] - shown["row"].map(rows["prompt_tokens"])
        found.append(_made(shown["step"], "trained", 0, shown["tokens"], response, 6))
    return [frame[frame["step"] <= max(last, total)] for frame in found]


def _made(
    step: pd.Series, kind: str, first: pd.Series | int, last: pd.Series, response: pd.Series | int, passes: int
) -> pd.DataFrame:
    import pandas as pd

    columns = {"step": step, "first": first, "last": last, "response": response}
    return pd.DataFrame(columns).assign(kind=kind, paper_passes=passes)


def _measured(step: Path, counted: pd.DataFrame) -> pd.DataFrame:
    """measured_<kind> of each step: what was counted of it, times measured over counted of the sampled steps."""
    import pandas as pd

    names = {kind: f"measured_{kind}" for kind in KINDS}
    found = pd.DataFrame(float("nan"), index=counted.index, columns=list(names.values()))
    if not (step / "flops.parquet").is_file():
        return found
    sampled = files.table(step / "flops.parquet").set_index("step").reindex(counted.index)
    for kind, name in names.items():
        here = sampled[kind].notna()
        whole = counted.loc[here, kind].sum()
        if not counted[kind].any():
            found[name] = 0.0
        elif whole:
            found[name] = counted[kind] * (sampled.loc[here, kind].sum() / whole)
    return found


def totals(result: Result) -> dict[str, float]:
    """FLOPs of a whole run and of what was spent before it: paper, trained, scored, written, counted, measured.

    served: those of `measured` that are not measured but counted, as a server wrote the completions.
    """
    sums = dict.fromkeys((PAPER, *KINDS, MEASURED, SERVED), 0.0)
    for directory in dict.fromkeys((*result.chain, result.step)):
        for name, value in _whole(directory).items():
            sums[name] += value
    return sums | {COUNTED: sum(sums[kind] for kind in KINDS)}


def _whole(directory: Path) -> dict[str, float]:
    if directory.parent.name == "train":
        frame = of_run(directory)
        measured = {kind: float(frame[f"measured_{kind}"].sum(skipna=False)) for kind in KINDS}  # nan: it was not
        served = 0.0
        if math.isnan(measured["written"]) and not math.isnan(measured["trained"]):
            served = measured["written"] = float(frame["written"].sum())
        sums = {name: float(frame[name].sum()) for name in (PAPER, *KINDS)}
        return sums | {MEASURED: sum(measured.values()), SERVED: served}
    nothing = dict.fromkeys((PAPER, "trained", "scored"), 0.0)
    if directory.parent.name == "generate":  # answers to learn from; attention is left out of its own count
        spent = read_json(checked(directory / "spent.json"))
        return nothing | {"written": float(spent["flops"]), MEASURED: float("nan")}
    return dict.fromkeys((PAPER, *KINDS, MEASURED), float("nan"))  # given: nobody knows
