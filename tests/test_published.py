"""Published numbers: the carried tables against the stored files, and files that cannot be read."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from scalpel import published
from scalpel.config.training import PROJECTIONS
from scalpel.errors import UserError
from tests import synthetic
from tests.test_exhibits import draw, table

FOLDER = Path(__file__).resolve().parent.parent / "workflow" / "published"
FILE = FOLDER / "scalpel_vs_hammer.yaml"


def stored(shared_data: Path, name: str) -> pd.DataFrame:
    """An authors' file; model and checkpoint as the carried tables write them, `main` left out."""
    frame = pd.read_parquet(shared_data / "paper1_published_results" / name)
    frame = frame[frame["checkpoint"] != "main"]
    step = frame["checkpoint"].str.rpartition("-")[2].astype(int)
    return frame.assign(model=frame["model"].str.rpartition("_")[2], checkpoint=step)


def to_bfloat16(values) -> np.ndarray:
    import torch

    return torch.tensor(np.asarray(values, dtype=np.float64)).bfloat16().double().numpy()


def test_the_carried_tables_are_the_stored_ones_to_the_last_bit(shared_data):
    whose = ["model", "checkpoint"]
    for file, name, value, keys in (
        ("scalpel_vs_hammer_norms.csv", "norm_trajectories.parquet", "value", [*whose, "module", "layer"]),
        ("scalpel_vs_hammer_kl.csv", "kl_math500.parquet", "kl", whose),
    ):
        theirs = stored(shared_data, name)
        theirs = theirs[theirs["file"] == "kls_500.json"] if "file" in theirs else theirs
        ours = pd.read_csv(FOLDER / file, comment="#")
        both = ours.merge(theirs.rename(columns={value: "stored"}), on=keys)
        assert len(both) == len(ours) == len(theirs)
        np.testing.assert_array_equal(to_bfloat16(both["value"]), both["stored"])


def test_tables_say_where_they_come_from_and_under_which_licence():
    for path in FOLDER.glob("*.csv"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any("Source: " in line and "2ea0f68" in line and "Apache-2.0" in line for line in head)
        assert path.stat().st_size < 1.5e6


def test_courses_are_filled_in_under_our_names():
    numbers = published.read(FILE)
    assert json.loads(json.dumps(numbers)) == numbers, "it can stand in a recipe"
    assert numbers["kl"]["grpo"]["steps"][:2] == [29, 58] and numbers["kl"]["grpo"]["steps"][-1] == 571
    assert numbers["kl"]["sft_lr_1e-6"]["values"][-1] == pytest.approx(3.672, abs=1e-3)
    course = numbers["weight_change_trajectories"]["sft_3ep"]
    assert course["steps"][-1] == 462 and set(course) == {"steps", *PROJECTIONS}
    assert [len(course["q_proj"]), len(course["q_proj"][0])] == [len(course["steps"]), 32]
    assert numbers["weight_change"]["sft_3ep"]["q_proj"] == course["q_proj"][-1]
    mean = {run: np.mean([numbers["weight_change"][run][p] for p in PROJECTIONS]) for run in ("grpo", "sft_lr_1e-6")}
    assert mean == {"grpo": pytest.approx(0.00123, rel=0.01), "sft_lr_1e-6": pytest.approx(0.00513, rel=0.01)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model,checkpoint,kl\na,1,2\n", "its columns must be model, checkpoint, value"),
        ("# c\nmodel,checkpoint,value\na,1,2\na,1,x\n", "line 4 is no row of model, checkpoint, value"),
        ("model,checkpoint,value\na,1,2,3\n", "line 2 has 4 values for 3 columns"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, text, sentence):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"trajectories": {"models": {"grpo": "a"}, "kl": "kl.csv"}}))
    if text is not None:
        (tmp_path / "kl.csv").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        published.read(tmp_path / "p.yaml")
    assert "kl.csv" in str(error.value)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"trajectories": {"kl": "kl.csv"}}))
    with pytest.raises(UserError, match="give `models"):
        published.read(tmp_path / "p.yaml")


# ---------------------------------------------------------------- beside ours


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    root = tmp_path_factory.mktemp("beside")
    plan = synthetic.plan_of(root)
    synthetic.finish_all(plan, root)
    return plan, root


@pytest.mark.parametrize("name", ["kl", "norms_course", "norms_sft"])
def test_every_published_checkpoint_stands_beside_ours(beside, name):
    frame = table(beside, name)
    theirs = frame[frame["source"] == "published"]
    runs = {"norms_sft": ["sft_3ep"]}.get(name, ["grpo", "sft_3ep", "sft_lr_1e-6"])
    assert list(theirs["run"].unique()) == runs
    numbers = published.read(FILE)
    for run in runs:
        rows = theirs[theirs["run"] == run]
        if name == "kl":
            assert rows["x"].tolist() == numbers["kl"][run]["steps"]
            assert rows["kl"].tolist() == numbers["kl"][run]["values"]
            continue
        course = numbers["weight_change_trajectories"][run]
        assert sorted(set(rows["step"])) == course["steps"]
        found = rows.groupby("step")["relative"].mean()
        each = np.array([course[projection] for projection in PROJECTIONS])  # projection, step, layer
        np.testing.assert_allclose(found, each.mean(axis=(0, 2)), rtol=1e-12)
    if name == "norms_sft":
        one = theirs.query("step == 462 and layer == 31 and projection == 'q_proj'")["relative"]
        assert one.item() == numbers["weight_change_trajectories"]["sft_3ep"]["q_proj"][-1][31]
    figure = draw(beside, name)
    titles = [axes.get_title() for axes in figure.axes] + [part.get_suptitle() for part in figure.subfigs]
    assert any("published" in title for title in titles)
    if name != "norms_sft":
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert "SFT, GRPO's rate (authors)" in legend


def test_published_courses_can_stand_over_questions_and_under_our_names(beside):
    options = {"published_as": {"sft_matched": "sft_lr_1e-6"}, "also_published": {}, "x": "questions"}
    frame = table(beside, "kl", **options)
    theirs = frame[(frame["source"] == "published") & (frame["run"] == "sft_matched")]
    assert theirs["x"].tolist() == [448 * step for step in published.read(FILE)["kl"]["sft_lr_1e-6"]["steps"]]
    grpo = frame[(frame["source"] == "published") & (frame["run"] == "grpo")]
    assert grpo["x"].tolist() == [16 * step for step in grpo["step"]]
    assert set(table(beside, "kl", x="tokens")["source"]) == {"ours"}, "nobody published how many tokens"
    with pytest.raises(UserError, match="no published run is named 'sft_lr'; did you mean"):
        table(beside, "kl", also_published={"sft_lr": "SFT"})
