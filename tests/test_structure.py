"""Structure of updates against numpy's SVD in float64, its laws, the plan's part in it, and its exhibits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from scalpel.analysis.structure import largest_angle, structure
from scalpel.artifact.files import read_json
from scalpel.artifact.manifest import seal
from scalpel.artifact.step import Step, record_recipe
from scalpel.config.analysis import StructureRecipe
from scalpel.config.training import PROJECTIONS
from scalpel.cost.estimate import estimate
from scalpel.errors import UserError
from scalpel.exhibits.structure import MEASURES, of_checkpoint
from scalpel.plan.feasible import refuse_what_cannot_run
from tests import synthetic
from tests.test_exhibits import draw, parquet, shown, table

TOP, ENERGY = 3, 0.9


def saved(directory, name, change, dtype=None):
    """A copy of a saved model with change(tensor name, tensor) in place of each projection."""
    path = directory.parent / name
    shutil.copytree(directory, path)
    tensors = load_file(path / "model.safetensors")
    for key, tensor in tensors.items():
        if key.split(".")[-2] in PROJECTIONS:
            tensors[key] = change(key, tensor).contiguous()
    save_file({key: tensor.to(dtype or tensor.dtype) for key, tensor in tensors.items()}, path / "model.safetensors")
    return path


def noisy(seed, share, strength):
    """Adds noise to this share of the entries, chosen at random."""
    generator = torch.Generator().manual_seed(seed)

    def change(name, tensor):
        noise = strength * tensor.std() * torch.randn(tensor.shape, generator=generator)
        return tensor + noise * (torch.rand(tensor.shape, generator=generator) < share)

    return change


@pytest.fixture(scope="module")
def models(tiny_base, tmp_path_factory):
    """A base, two checkpoints of one run and two of another: sparse and tiny, then dense."""
    base = tmp_path_factory.mktemp("structure") / "base"
    shutil.copytree(tiny_base, base)
    ours = [(5, saved(base, "a5", noisy(1, 0.3, 0.002))), (10, saved(base, "a10", noisy(2, 0.9, 0.5)))]
    theirs = [(6, saved(base, "b6", noisy(3, 0.4, 0.002))), (12, saved(base, "b12", noisy(4, 0.8, 0.5)))]
    return base, ours, theirs


def measured(base, ours, theirs, out, **recipe):
    out.mkdir(exist_ok=True)
    structure(base, ours, theirs, StructureRecipe(**{"top": TOP, "energy": ENERGY} | recipe), out)
    return pd.read_parquet(out / "structure.parquet")


def arrays(directory):
    tensors = load_file(directory / "model.safetensors")
    return {
        (int(key.split(".")[2]), key.split(".")[-2]): tensor
        for key, tensor in tensors.items()
        if key.split(".")[-2] in PROJECTIONS
    }


def angle(one, other):
    """Largest principal angle in degrees, from projections: sin = || P_one - P_other ||_2."""
    return np.degrees(np.arcsin(min(1, np.linalg.norm(one @ one.T - other @ other.T, 2))))


def by_brute_force(before, after, other):
    """One matrix's row, by entries and numpy's SVD."""
    w0, w, o = (tensor.double().numpy() for tensor in (before, after, other))
    u0, s0, v0 = np.linalg.svd(w0, full_matrices=False)
    u, s, v = np.linalg.svd(w, full_matrices=False)
    squares = np.linalg.svd(w - w0, compute_uv=False) ** 2
    row = {
        "entries": w.size,
        "full_rank": min(w.shape),
        "stable_rank": squares.sum() / squares[0],
        "energy_rank": next(r for r in range(1, len(squares) + 1) if squares[:r].sum() >= ENERGY * squares.sum()),
        "spectral_drift": np.sqrt(((s - s0) ** 2).sum() / (s0**2).sum()),
        "angle_left": angle(u0[:, :TOP], u[:, :TOP]),
        "angle_right": angle(v0[:TOP].T, v[:TOP].T),
    }
    rounded = [tensor.bfloat16().float().numpy() for tensor in (before, after, other)]
    for suffix, (x0, x, y) in {"": (w0, w, o), "_bf16": rounded}.items():
        pairs = list(zip(x0.flat, x.flat, y.flat, strict=True))
        row[f"unchanged{suffix}"] = sum(a == b for a, b, _ in pairs) / w.size
        row[f"changed{suffix}"] = sum(a != b for a, b, _ in pairs) / w.size
        row[f"other_changed{suffix}"] = sum(a != c for a, _, c in pairs) / w.size
        row[f"both_changed{suffix}"] = sum(a != b and a != c for a, b, c in pairs) / w.size
    return row


def test_equals_a_brute_force_reference(models, tmp_path):
    base, ours, theirs = models
    frame = measured(base, ours, theirs, tmp_path / "out")
    layers = sorted({layer for layer, _ in arrays(base)})
    assert list(zip(frame["step"], frame["layer"], frame["projection"], strict=True)) == [
        (step, layer, projection) for step, _ in ours for layer in layers for projection in PROJECTIONS
    ]
    before = arrays(base)
    for (step, one), (_, two) in zip(ours, theirs, strict=True):
        after, other = arrays(one), arrays(two)
        for row in frame[frame["step"] == step].to_dict("records"):
            key = row["layer"], row["projection"]
            expected = by_brute_force(before[key], after[key], other[key])
            assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6), key
    sparse, dense = (frame[frame["step"] == step].reset_index() for step in (5, 10))
    assert (sparse["unchanged"] > 0.6).all() and (sparse["unchanged_bf16"] > sparse["unchanged"] + 0.05).all()
    assert (dense["unchanged_bf16"] < 0.2).all() and (dense["spectral_drift"] > sparse["spectral_drift"]).all()


def test_an_update_of_known_rank(tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)

    def rank_two(name, tensor):
        u, s, v = torch.linalg.svd(tensor, full_matrices=False)
        s[:2] += torch.tensor([2.0, 1.0]) * s[0]
        return u @ s.diag() @ v

    frame = measured(base, [(1, saved(base, "two", rank_two))], None, tmp_path / "out")
    assert (frame["energy_rank"] == 2).all() and frame["stable_rank"].tolist() == pytest.approx([1.25] * len(frame))
    assert frame[["angle_left", "angle_right"]].to_numpy().max() < 0.1, "the directions stay, the spectrum does not"
    assert frame[["changed", "other_changed", "both_changed_bf16"]].isna().all(axis=None)


def test_no_update_has_no_rank_and_moves_nothing(models, tmp_path):
    base, *_ = models
    frame = measured(base, [(1, base)], None, tmp_path / "out", top=10**4)
    assert (frame[["unchanged", "unchanged_bf16"]] == 1).all(axis=None)
    assert frame[["stable_rank", "energy_rank"]].isna().all(axis=None)
    assert (frame["spectral_drift"] == 0).all() and frame[["angle_left", "angle_right"]].to_numpy().max() < 1e-5


def test_stored_in_bfloat16_both_sparsities_agree(models, tmp_path):
    base, ours, _ = models
    same = lambda name, tensor: tensor  # noqa: E731
    rough, rougher = (saved(path, f"{path.name}_bf16", same, torch.bfloat16) for path in (base, ours[0][1]))
    frame = measured(rough, [(5, rougher)], None, tmp_path / "out")
    assert (frame["unchanged"] == frame["unchanged_bf16"]).all()
    fine = measured(base, ours[:1], None, tmp_path / "fine")
    assert frame["unchanged"].tolist() == fine["unchanged_bf16"].tolist()
    of_fine_base = measured(base, [(5, rougher)], [(5, rough)], tmp_path / "mixed")
    compared = frame.columns.difference(["changed", "other_changed", "both_changed"]).difference(
        [f"{name}_bf16" for name in ("changed", "other_changed", "both_changed")]
    )
    pd.testing.assert_frame_equal(of_fine_base[compared], frame[compared])
    assert (of_fine_base["other_changed"] == 0).all(), "the other is the base, rounded"


def test_angles_of_known_planes():
    x, y, z = torch.eye(3, dtype=torch.float64)
    for degrees in (0.0, 1e-7, 30.0, 89.9999999, 90.0):
        turned = np.cos(np.radians(degrees)) * y + np.sin(np.radians(degrees)) * z
        found = largest_angle(torch.stack([x, y], 1), torch.stack([x, turned], 1))
        assert found == pytest.approx(degrees, abs=1e-9)


def test_what_cannot_be_measured_is_named(models, tmp_path):
    base, ours, theirs = models
    with pytest.raises(UserError, match="2 checkpoints to compare, the other 1"):
        measured(base, ours, theirs[:1], tmp_path / "out")
    broken = saved(base, "broken", lambda name, tensor: tensor * float("nan") if "v_proj" in name else tensor)
    with pytest.raises(UserError, match=r"v_proj\.weight holds NaN"):
        measured(base, [(1, broken)], None, tmp_path / "out")
    empty = saved(base, "empty", lambda name, tensor: tensor * 0)
    with pytest.raises(UserError, match="all zeros"):
        measured(empty, [(1, base)], None, tmp_path / "out")
    assert not (tmp_path / "out" / "structure.parquet").exists()


# ---------------------------------------------------------------- the plan


def test_planned_only_when_asked_for_and_nothing_else_changes(tmp_path):
    without = synthetic.plan_of(tmp_path)
    assert not [step for step in without.steps.values() if step.stage == "structure"]
    asked = synthetic.plan_of(tmp_path, {"overrides": {"structure": {"top": 4}}})
    new = [step for digest, step in asked.steps.items() if digest not in without.steps]
    assert set(without.steps) < set(asked.steps) and {step.stage for step in new} == {"structure"}
    (grpo,) = [step for step in new if step.name == "grpo"]
    assert grpo.recipe == {"energy": 0.99, "top": 4, "checkpoints": list(range(1, 9))}
    assert set(grpo.inputs) == {"base", "checkpoints"}


def test_later_seeds_are_compared_with_the_first_at_the_checkpoints_evaluated(tmp_path):
    options = {"seeds": [7, 42, 43], "evaluated": 2}
    plan = synthetic.plan_of(tmp_path, {"overrides": {"structure": {}}, "runs": {"grpo": options}})
    of = {e.seed: e.step for e in plan.entries[synthetic.STUDY] if (e.stage, e.run) == ("structure", "grpo")}
    assert list(of) == [7, 42, 43] and "other" not in of[7].inputs
    assert of[42].inputs["other"] is of[43].inputs["other"] is of[7].inputs["checkpoints"]
    assert of[42].recipe["checkpoints"] == [4, 8]


def test_a_study_s_setting_asks_for_it_and_config_takes_it_away(tmp_path):
    plan = synthetic.plan_of(tmp_path, {"studies": ["scalpel_vs_hammer_full"]})
    stages = {entry.stage for entry in plan.entries["scalpel_vs_hammer_full"]}
    assert "structure" in stages and {"rivals", "structure"} <= {name for _, name in plan.drawings}
    refuse_what_cannot_run(plan)
    wrong = synthetic.workflow_with(tmp_path / "w", synthetic.study_file() | {"setting": {"structur": {}}})
    with pytest.raises(UserError, match=r"scalpel_vs_hammer\.yaml: setting.*'structur'.*'structure'"):
        synthetic.plan_of(tmp_path, workflow=wrong)
    asking = synthetic.workflow_with(tmp_path / "a", synthetic.study_file() | {"setting": {"structure": {}}})
    off = {"overrides": {"studies": {synthetic.STUDY: {"structure": None}}}}
    stages = [{s.stage for s in synthetic.plan_of(tmp_path, raw, asking).steps.values()} for raw in ({}, off)]
    assert ["structure" in found for found in stages] == [True, False]


def test_cost_is_told_for_a_gpu(tmp_path):
    plan = synthetic.plan_of(tmp_path, {"scale": "cluster", "overrides": {"structure": {}}})
    (row,) = [row for row in estimate(plan).rows if row.stage == "structure"]
    assert row.jobs == 6 and row.gpus == 1 and row.longest < row.limit and row.gpu_hours > 0.1


def test_the_program_makes_it_of_finished_checkpoints(models, tmp_path):
    base, ours, theirs = models
    steps = {}
    for role, found in (("checkpoints", ours), ("other", theirs)):
        step = steps[role] = Step("train", role, 1, {"of": role}, {})
        directory = synthetic.finish(step, tmp_path, {})
        listed = []
        for index, (number, path) in enumerate(found, 1):
            shutil.copytree(path, directory / f"checkpoints/{number}")
            listed.append({"index": index, "step": number, "path": f"checkpoints/{number}"})
        (directory / "checkpoints.json").write_text(json.dumps(listed))
        seal(directory, read_json(directory / "recipe.json"), {})
    steps["base"] = Step("base", "toy", 1, {}, {})
    directory = synthetic.finish(steps["base"], tmp_path, {})
    shutil.copytree(base, directory / "model")
    seal(directory, read_json(directory / "recipe.json"), {})
    recipe = StructureRecipe(top=TOP, energy=ENERGY).identity() | {"checkpoints": [2]}
    step = Step("structure", "a", 1, recipe, steps, {"threads": 1})
    record_recipe(step, tmp_path)
    program = [sys.executable, "-m", "scripts.structure", str(tmp_path / step.directory)]
    subprocess.run(program, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    made = pd.read_parquet(tmp_path / step.directory / "structure.parquet")
    pd.testing.assert_frame_equal(made, measured(base, ours[1:], theirs[1:], tmp_path / "out"))


# ---------------------------------------------------------------- the figure


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("shown")
    study = synthetic.study_file()
    study["exhibits"] = {"structure": {}, "rivals": {}}
    workflow = synthetic.workflow_with(root, study | {"setting": {"structure": {}}})
    plan = synthetic.plan_of(root, {"overrides": {"seeds": [42, 43]}}, workflow)
    synthetic.finish_all(plan, root)
    return plan, root


def test_the_figure_s_numbers_are_the_files(world):
    frame = table(world, "structure").set_index(["run", "seed", "step", "measure"]).sort_index()
    rows = parquet(world, "structure", "grpo", "structure.parquet", seed=43)
    rows = rows[rows["step"] == 100]
    one, other, both = (rows[name].sum() for name in ("changed_bf16", "other_changed_bf16", "both_changed_bf16"))
    chance = (rows["changed_bf16"] * rows["other_changed_bf16"]).sum()
    found = frame.loc["grpo", 43, 100]
    assert found.loc["overlap_bf16", "value"] == pytest.approx((both / one + both / other) / 2)
    assert found.loc["overlap_bf16", "expected"] == pytest.approx((chance / one + chance / other) / 2)
    assert found.loc["unchanged_bf16", "value"] == pytest.approx(rows["unchanged_bf16"].mean())
    assert found.loc["energy_rank", "value"] == 50 / 64
    assert found.loc["angle", "value"] == pytest.approx(rows["angle_left"].mean())
    assert "overlap" not in frame.loc["grpo", 42, 100].index, "the first seed is compared with nobody"
    sizes = pd.DataFrame({"entries": [10, 90], "unchanged": [1.0, 0.0]})
    assert of_checkpoint(rows.head(2).reset_index().assign(**sizes))["unchanged"][0] == pytest.approx(0.1)


def test_a_panel_for_each_measure(world):
    figure = draw(world, "structure")
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == list(MEASURES.values())
    assert len(draw(world, "structure", measures=("angle",)).axes) == 1
    with pytest.raises(UserError, match="'angel' is not measured; did you mean 'angle'"):
        table(world, "structure", measures=("angel",))
    with pytest.raises(UserError, match="several seeds"):
        kind, results, options = shown(world, "structure", measures=("overlap",))
        kind.module.table(results.only(lambda result: result.seed == 42), options)
