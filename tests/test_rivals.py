"""Rival explanations of forgetting: leave-one-run-out against plain numpy, planted explanations, and the figure."""

import numpy as np
import pandas as pd
import pytest

from scalpel.errors import UserError
from scalpel.exhibits.rivals import fit, leave_one_run_out, weights_of
from tests import synthetic
from tests.test_exhibits import draw, parquet, plain_scores, table
from tests.test_structure import world  # noqa: F401 (a fixture)

KEPT = ("mmlu", "mmlu_pro", "ifeval_prompt")


def plainly(x, y, runs, degree):
    """R2 of runs left out, by polyfit with repeated points in place of weights."""
    above, below = 0.0, 0.0
    counts = {run: list(runs).count(run) for run in runs}
    whole = int(np.lcm.reduce(list(counts.values())))
    for run in counts:
        kept = [i for i, other in enumerate(runs) if other != run for _ in range(whole // counts[other])]
        left = [i for i, other in enumerate(runs) if other == run]
        polynomial = np.polyfit(x[kept], y[kept], degree)
        said = np.polyval(polynomial, np.clip(x[left], x[kept].min(), x[kept].max()))
        above += np.sum((y[left] - said) ** 2) / counts[run]
        below += np.sum((y[left] - y[kept].mean()) ** 2) / counts[run]
    return 1 - above / below


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_equals_a_plain_reference(degree):
    rng = np.random.default_rng(1)
    runs = ["a"] * 4 + ["b"] * 6 + ["c"] * 3 + ["d"] * 5
    x = rng.gamma(1, 1e-3, len(runs))
    y = 3e2 * x + rng.normal(0, 0.3, len(runs))
    _, r2 = leave_one_run_out(x, y, runs, degree)
    assert r2 == pytest.approx(plainly(x, y, runs, degree), rel=1e-6)


def test_what_explains_wins_and_what_only_tells_runs_apart_loses():
    """A predictor that is one number a run fits the runs it has seen, and says nothing of another."""
    rng = np.random.default_rng(2)
    runs = [f"r{i}" for i in range(6) for _ in range(8)]
    truth = np.repeat([0.2, 0.9, 0.5, 1.6, 0.4, 1.3], 8) + rng.uniform(-0.2, 0.4, len(runs))
    y = 0.1 * truth + 0.05 * truth**2
    of_run = np.repeat([3.0, 1.0, 4.0, 2.0, 5.0, 6.0], 8)
    assert leave_one_run_out(truth, y, runs, 2)[1] > 0.8
    assert leave_one_run_out(of_run, y, runs, 3)[1] < 0
    assert leave_one_run_out(of_run, y, list(range(len(runs))), 3)[1] > 0.4, "left out by checkpoint, it looks right"
    assert np.isnan(leave_one_run_out(truth, np.ones(len(runs)), runs, 2)[1])


def test_nothing_is_said_beyond_the_points_and_a_constant_fits():
    line = fit(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.ones(2), 1)
    assert line(np.array([0.0, 1.5, 9.0])) == pytest.approx([1, 1.5, 2])
    assert fit(np.zeros(4), np.arange(4.0), np.ones(4), 2)(np.array([5.0])) == pytest.approx([1.5])
    assert weights_of(["a", "b", "b"]).tolist() == [1, 0.5, 0.5]


def test_every_number_comes_from_the_files(world):  # noqa: F811
    frame = table(world, "rivals")
    assert list(frame["predictor"].unique()) == [
        "KL on math_500 (nats)", "relative weight change", "entries unchanged as stored",
        "entries unchanged in bfloat16", "spectral drift", "tokens read and written",
    ]  # fmt: skip
    run, seed, step = "sft_3ep", 43, 105
    rows = frame.set_index(["run", "seed", "step"]).loc[run, seed, step].set_index("predictor")
    base, mine = plain_scores(world, "base", 0)["value"], plain_scores(world, run, seed)["value"]
    assert rows["forgetting"].to_numpy() == pytest.approx(np.mean([base[0, t] - mine[step, t] for t in KEPT]))

    def read(stage, file):
        found = parquet(world, stage, run, file, seed=seed)
        return found[found["step"] == step] if stage != "train" else found

    assert rows["x"].tolist() == pytest.approx(
        [
            read("kl", "kl.parquet")["kl"].mean(),
            read("weight_change", "weight_change.parquet")["relative"].mean(),
            0.01,
            read("structure", "structure.parquet")["unchanged_bf16"].mean(),
            read("structure", "structure.parquet")["spectral_drift"].mean(),
            read("train", "log.parquet")["tokens"].sum(),
        ]
    )
    part = frame[frame["predictor"] == "spectral drift"]
    expected = plainly(part["x"].to_numpy(), part["forgetting"].to_numpy(), list(part["run"]), 2)
    assert part["r2"].to_numpy() == pytest.approx(expected, rel=1e-6)


def test_a_run_s_seeds_are_left_out_together(world):  # noqa: F811
    frame = table(world, "rivals", degree=1)
    part = frame[frame["predictor"] == "spectral drift"]
    kept = part[part["run"] != "grpo"]
    weights = 1 / kept.groupby("run")["x"].transform("size")
    slope, offset = np.polyfit(kept["x"], kept["forgetting"], 1, w=np.sqrt(weights))
    out = part[part["run"] == "grpo"]
    clipped = out["x"].clip(kept["x"].min(), kept["x"].max())
    assert out["left_out"].to_numpy() == pytest.approx((slope * clipped + offset).to_numpy())


def test_panels_best_first(world):  # noqa: F811
    frame = table(world, "rivals")
    figure = draw(world, "rivals", frame=frame)
    best = frame.loc[frame["r2"].idxmax()]
    assert figure.axes[0].get_xlabel() == best["predictor"]
    assert figure.axes[0].get_title() == f"$R^2$ = {best['r2']:.2f}"
    assert sum(axes.get_visible() for axes in figure.axes) == 6
    draw(world, "rivals", spread="log")


def test_what_cannot_be_compared_is_said(world, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="2 of its runs have forgetting and every predictor"):
        table(world, "rivals", runs=("base", "grpo", "sft_1ep"))
    with pytest.raises(UserError, match="name tasks of math_500"):
        table(world, "rivals", kept=("nothing",))
    with pytest.raises(UserError, match="name base"):
        table(world, "rivals", runs=("grpo", "sft_1ep", "sft_3ep"))


def test_without_structure_the_others_are_compared(tmp_path):
    study = synthetic.study_file()
    study["exhibits"] = {"rivals": {"tokens": False}}
    workflow = synthetic.workflow_with(tmp_path, study)
    raw = {"overrides": {"kl": {"elsewhere": {"questions": "math_500"}}}}
    plan = synthetic.plan_of(tmp_path, raw, workflow)
    synthetic.finish_all(plan, tmp_path)
    frame = table((plan, tmp_path), "rivals")
    assert set(frame["predictor"]) == {
        "KL on math_500 (nats)", "KL on elsewhere (nats)", "relative weight change",
    }  # fmt: skip
    assert isinstance(frame, pd.DataFrame) and frame.groupby("predictor")["r2"].nunique().eq(1).all()
