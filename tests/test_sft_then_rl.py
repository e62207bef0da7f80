"""The study of the second paper: its tables and figures beside the published numbers, on synthetic results."""

import math

import numpy as np
import pytest

from scalpel import exhibits
from scalpel.errors import UserError
from scalpel.exhibits.options import ExhibitOptions
from scalpel.exhibits.paper_table import ours
from scalpel.exhibits.render import render
from scalpel.exhibits.style import Style
from scalpel.methods import METHODS
from scalpel.plan.feasible import refuse_what_cannot_run
from scalpel.report import answer
from scalpel.report.tables import of_csv
from tests import synthetic
from tests.synthetic import LOGGED
from tests.test_exhibits import draw, shown, table
from tests.test_report import build

STUDY = "sft_then_rl"
TABLES = {f"table_{number}": number for number in (1, 2, 3, 5)}
SCALES = ("laptop", "workstation", "gpu", "cluster")
ARMS = {"all", "first_and_last", "first"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("sft_then_rl")
    raw = {"studies": [STUDY], "scale": "laptop"}
    plan = synthetic.plan_of(root, raw)
    synthetic.finish_all(plan, root)
    return plan, root


@pytest.mark.parametrize("scale", SCALES)
def test_the_study_plans(scale, tmp_path):
    plan = synthetic.plan_of(tmp_path, {"studies": [STUDY], "scale": scale})
    refuse_what_cannot_run(plan)
    assert {*TABLES, "table_6", "bugs", "bug_courses", "bug_reward", "dynamics", "flops", "score_flops"} <= {
        name for _, name in plan.drawings
    }


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", [STUDY, f"{STUDY}_other_model"])
def test_methods_that_write_ask_the_same_questions_alike_at_every_scale(study, scale, tmp_path):
    runs = synthetic.plan_of(tmp_path, {"studies": [study], "scale": scale}).config.studies[study].runs
    writing = {name: run.recipe for name, run in runs.items() if METHODS[run.recipe.method].samples}
    short = writing.pop("sft_then_rl_short", None)
    assert len(writing) == (14 if study == STUDY else 6)
    asked = ("questions_per_step", "steps", "updates", "generations", "max_completion_tokens", "dtype", "inference")
    (found,) = {tuple(getattr(recipe, field) for field in asked) for recipe in writing.values()}
    if short:
        assert 10 * short.steps == found[1], "a tenth of the steps"


@pytest.mark.parametrize("scale", SCALES)
def test_the_other_base_model_is_another_one(scale, tmp_path):
    studies = [STUDY, f"{STUDY}_other_model"]
    plan = synthetic.plan_of(tmp_path, {"studies": studies, "scale": scale})
    refuse_what_cannot_run(plan)
    one, other = (
        {entry.step.inputs["base"].digest for entry in plan.entries[study] if entry.stage == "train"}
        for study in studies
    )
    assert len(one) == len(other) == 1 and one != other


def test_the_cluster_asks_the_paper_s_benchmarks_and_gives_each_method_an_engine_it_can_use(tmp_path):
    plan = synthetic.plan_of(tmp_path, {"studies": [STUDY], "scale": "cluster"})
    refuse_what_cannot_run(plan)
    setting = plan.config.studies[STUDY].setting
    small = {name for name, task in setting.evaluation.tasks.items() if task.samples == 32}
    assert small == {"aime24", "aime25", "amc"} and {"minerva", "olympiad", "math_500"} < set(setting.evaluation.tasks)
    engines = {}
    for entry in plan.entries[STUDY]:
        if entry.stage == "train":
            method, settings = entry.step.recipe["method"], entry.step.settings
            engines.setdefault(method, set()).add(settings["engine"])
            audited = entry.step.gates["audit"].recipe["fingerprint"]["engine"]
            assert audited == settings["engine"] and settings["ranks"] == 4 and settings["server"]["gpus"] == 4
    assert engines["relift"] == engines["hpt"] == {"fsdp"} and engines["sft"] == engines["luffy"] == {"zero2"}
    assert plan.config.scale.train_settings.ranks == 7, "the first paper's"
    tasks = setting.evaluation.tasks
    assert tasks["arc_challenge"].formulation == tasks["mmlu_pro"].formulation == "written"
    for name in ("arc_challenge", "mmlu_pro_written"):
        assert plan.materials.questions(name).recipe["shuffle"] == 42
    (data,) = {entry.step.inputs["data"] for entry in plan.entries[STUDY] if entry.stage == "train"}
    fetched = data.inputs["fetch"].recipe
    assert fetched["repo"].endswith("Openr1-Math-46k-8192") and fetched["revision"] is None
    assert data.recipe["source"]["columns"]["problem"] == "prompt[-1].content"


def test_the_other_base_model_has_the_paper_s_table_4_beside_it(tmp_path):
    study = f"{STUDY}_other_model"
    plan = synthetic.plan_of(tmp_path, {"studies": [study], "scale": "cluster"})
    refuse_what_cannot_run(plan)
    bases = {entry.step.inputs["base"] for entry in plan.entries[study] if entry.stage == "train"}
    (fetched,) = {base.inputs["fetch"].recipe["repo"] for base in bases}
    assert fetched == "meta-llama/Llama-3.1-8B"
    plan = synthetic.plan_of(tmp_path, {"studies": [study]})
    synthetic.finish_all(plan, tmp_path)
    frame = table((plan, tmp_path), "table_4", study)
    assert {row["run"]: row["mean"] for row in frame[frame["of"] == "published"].to_dict("records")} == {
        "sft": 33.9, "sft_then_rl": 43.7, "luffy": 14.4, "relift": 15.6, "srft": 16.2, "prefix_rft": 17.0, "hpt": 21.5,
    }  # fmt: skip
    assert frame[frame["of"] == "here"]["MATH-500"].between(0, 100).all()


def test_both_papers_stand_on_one_frontier_each_run_against_its_own_base_model(tmp_path):
    first, both = "scalpel_vs_hammer", "both_papers"
    raw = {"studies": [first, STUDY, both], "overrides": {"studies": {STUDY: {"model": "other_model"}}}}
    made = plan, _ = synthetic.plan_of(tmp_path, raw), tmp_path
    synthetic.finish_all(*made)
    columns = ["seed", "step", "gain", "gain_stderr", "loss", "loss_stderr"]
    frame = table(made, "frontier", both).set_index("run")[columns]
    kept = plan.drawings[both, "frontier"].recipe["options"]["kept"]
    for study, run in ((first, "grpo"), (STUDY, "luffy")):
        alone = table(made, "frontier", study, runs=("base", run), kept=kept)[columns]
        np.testing.assert_array_equal(frame.loc[f"{study}/{run}"].to_numpy(), alone.to_numpy())
    figure = draw(made, "frontier", both)
    marks = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert len(marks) == len(set(marks)) == 11
    assert "GRPO (first paper)" in [text.get_text() for text in figure.legends[0].get_texts()]
    with pytest.raises(UserError, match="sft_then_rl/luffy is compared with sft_then_rl/base, which is not shown"):
        table(made, "frontier", both, runs=(f"{first}/base", f"{STUDY}/luffy"))
    page = build(made, both)
    assert "Where do methods that mix" in page and "scalpel_vs_hammer/grpo (1)" in page and 'id="runs"' not in page


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"engine_of": {"relfit": "fsdp"}}, "no method is named 'relfit'; did you mean 'relift'"),
        ({"nodes": 3, "engine": "zero2"}, "has 1 nodes at this scale; change `nodes`"),
        ({"engine_of": {"sft": "single"}, "engine": "zero2", "ranks": 2}, "several ranks need"),
    ],
)
def test_settings_of_a_study_that_cannot_be_carried_out_are_refused(settings, sentence, tmp_path):
    overrides = {"studies": {STUDY: {"train_settings": settings}}}
    with pytest.raises(UserError) as error:
        synthetic.plan_of(tmp_path, {"studies": [STUDY], "overrides": overrides})
    assert sentence in str(error.value)


def test_every_arm_of_bugs_is_a_run(made):
    plan, _ = made
    runs = plan.config.studies[STUDY].runs
    arms = [runs[name] for name in plan.drawings[STUDY, "bugs"].recipe["options"]["runs"]]
    grid = [(arm.recipe.micro_batches, arm.recipe.loss_mean) for arm in arms]
    assert len(grid) == 9 == len(set(grid))
    assert all(len(arm.seeds) == 3 for arm in arms)


@pytest.mark.parametrize("name", TABLES)
def test_published_rows_stand_beside_ours(name, made):
    frame = table(made, name, STUDY)
    _, results, options = shown(made, name, STUDY)
    there = results.published["scores"][options.section]
    published = frame[frame["of"] == "published"]
    assert len(published) == len([run for run in (*results.runs, *options.published_only) if run in there])
    for run in set(results.runs) & set(there):
        row = published[published["run"] == run].iloc[0]
        assert row["MATH-500"] == there[run]["math_500"][0]
    here = frame[frame["of"] == "here"]
    assert here["run"].tolist() == results.runs
    assert here["MATH-500"].between(0, 100).all()


def test_a_spread_is_the_deviation_between_seeds(made):
    _, results, options = shown(made, "table_1", STUDY)
    scores = results.scores()
    last = scores[scores["step"] == scores.groupby(["run", "seed"])["step"].transform("max")]
    values = 100 * last[(last["run"] == "sft") & (last["task"] == "math_500")].set_index("seed")["value"]
    assert len(values) == 3
    found = ours(results, options.averages)
    assert found["sft"]["math_500"] == pytest.approx((values.mean(), values.std(ddof=1)))
    assert math.isnan(found["base"]["math_500"][1]), "one seed has no spread"


def test_a_mean_is_over_the_tasks_asked_here(made):
    _, results, _ = shown(made, "table_1", STUDY)
    found = ours(results, {"one": ("math_500", "minerva"), "both": ("math_500", "gsm8k"), "none": ("olympiad",)})["sft"]
    assert found["one"][0] == pytest.approx(found["math_500"][0]) and "none" not in found
    assert found["both"][0] == pytest.approx((found["math_500"][0] + found["gsm8k"][0]) / 2)


def test_means_are_over_the_paper_s_tasks_alone(made):
    """So that a mean of ours stands beside the published mean of the same tasks where all are asked."""
    for name in TABLES:
        _, results, options = shown(made, name, STUDY)
        rows = results.published["scores"][options.section].values()
        for mean, tasks in options.averages.items():
            assert all(set(tasks) <= set(row) for row in rows if mean in row), (name, mean)
        here = table(made, name, STUDY).query("of == 'here'")
        assert {"GSM8k", "MMLU"} <= set(here.columns)
        (ood,) = {"mean ood", "mean"} & set(here.columns)
        small = ["AIME24", "AIME25", "amc"]
        asked = ["arc_challenge", "MMLU-Pro"] if ood == "mean ood" else [*small, "MATH-500", "MMLU-Pro"]
        assert here[[*small, *asked]].notna().all(axis=None), "at this scale, too"
        assert here[ood].to_numpy() == pytest.approx(here[asked].mean(axis=1).to_numpy())


def test_the_published_averages_are_those_of_the_published_scores(made):
    """So no number was copied wrong, to the rounding of the paper."""
    _, results, _ = shown(made, "table_1", STUDY)
    for section, rows in results.published["scores"].items():
        for run, row in rows.items():
            ood = ("arc_challenge", "gpqa_diamond", "mmlu_pro")
            groups = {"average_id": [t for t in row if not t.startswith("average") and t not in ood],
                      "average_ood": list(ood), "average": [t for t in row if not t.startswith("average")]}  # fmt: skip
            for name, tasks in groups.items():
                if name in row:
                    mean = np.mean([row[task][0] for task in tasks])
                    assert mean == pytest.approx(row[name][0], abs=0.11), (section, run, name)


def test_the_bugs_are_drawn(made):
    frame = table(made, "bugs", STUDY)
    here = frame[frame["of"] == "here"]
    assert set(here["micro_batches"]) == ARMS and set(here["loss_mean"]) == {"token", "group", "rank"}
    figure = draw(made, "bugs", STUDY)
    ours_, theirs = figure.axes
    assert sum(len(points.lines[0].get_xdata()) for points in ours_.containers) == 9
    assert ours_.get_ylabel() == theirs.get_ylabel() == "MATH-500, mean (%)"
    assert theirs.containers[0].lines[0].get_ydata().tolist() == [85.9, 85.5, 88.6, 89.7, 90.0]
    theirs = draw(made, "bugs", STUDY, tasks=[]).axes[1]
    assert theirs.get_ylabel() == "the paper's tasks, mean (%)"
    assert theirs.containers[0].lines[0].get_ydata().tolist() == [48.3, 49.1, 53.4, 54.0, 53.8]


@pytest.mark.parametrize("name", ["bug_courses", "bug_reward", "dynamics"])
def test_courses_are_drawn(name, made):
    assert len(draw(made, name, STUDY).axes) == len(made[0].drawings[STUDY, name].recipe["options"]["columns"])


def test_flops_of_every_run_by_three_accountings(made):
    frame = table(made, "flops", STUDY).set_index(["of", "run"])
    here = frame.loc["here"]
    assert (here[["paper", "counted", "measured"]] > 0).all(axis=None)
    assert (here["counted"] > here["paper"]).all(), "the paper leaves out prompts, attention and more"
    assert here.loc["sft_then_rl", "counted"] > here.loc["sft", "counted"], "the chain is counted from the base on"
    there = frame.loc["published"]
    assert f"{there.loc['sft_then_rl_short', 'paper']:.4e}" == "3.6385e+19"
    figure = draw(made, "flops", STUDY)
    assert len(figure.axes) == 2 and len(figure.axes[0].patches) == 3 * len(here)
    columns = table(made, "table_6", STUDY).columns
    assert {"printed", "by the paper's accounting", "counted", "measured"} <= set(columns)


def test_the_short_run_stands_beside_methods_that_spent_more(made):
    files = render_files(made, "equal_budget")
    frame = table(made, "equal_budget", STUDY)
    runs = made[0].drawings[STUDY, "equal_budget"].recipe["options"]["runs"]
    assert set(frame["run"]) == {*runs} - {"base"}
    of_luffy = frame[frame["budget"].str.endswith("FLOPs") & (frame["whose"] == "luffy")].set_index("run")
    short = of_luffy.loc["sft_then_rl_short"]
    assert float(short["spent"]) < float(of_luffy.loc["luffy", "spent"]) and short["gain − whose"][0] in "+-"
    of_short = frame[frame["budget"].str.endswith("FLOPs") & (frame["whose"] == "sft_then_rl_short")].set_index("run")
    assert float(of_short.loc["luffy", "spent"]) <= float(short["spent"]) < float(of_luffy.loc["luffy", "spent"])
    assert "none within it" in frame[frame["budget"].str.endswith("questions")].iloc[0]["step"], "SFT asks as many"
    label = Style(made[0].drawings[STUDY, "equal_budget"].recipe["looks"], (), ExhibitOptions()).label
    said = answer.at_equal_budgets(of_csv(files[0], label))
    assert len(said) == 3
    for unit, text in zip(("questions", "FLOPs", "seconds"), said, strict=True):
        assert f" {unit}, what LUFFY" in text and f" {unit}, what SFT, then short GRPO spent in all, " in text
    assert "SFT, then GRPO has no checkpoint to compare (none within it: its first took 360)" in said[0]


def render_files(made, name: str):
    plan, root = made
    plan.record()
    render(root / plan.drawings[STUDY, name].recipe_path)
    return [root / file for file in plan.drawings[STUDY, name].files]


def test_what_bugs_would_have_changed(made):
    """Against plain means of last checkpoints."""
    plan, _ = made
    frame = table(made, "bug_effect", STUDY).set_index("run")
    arms = set(plan.drawings[STUDY, "bugs"].recipe["options"]["runs"])
    assert set(frame.index) == arms | {"sft_then_rl", "sft_then_rl_buggy"}
    _, results, options = shown(made, "bug_effect", STUDY)
    scores = results.scores()
    last = scores[scores["step"] == scores.groupby(["run", "seed"])["step"].transform("max")]
    value = 100 * last[last["task"].isin(options.gain)].groupby(["run", "task"])["value"].mean().groupby("run").mean()
    best = value[list(options.rivals)].idxmax()
    assert set(frame["best"]) == {best}
    for run, row in frame.iterrows():
        right = "sft_then_rl" if run.startswith("sft_then_rl") else "sft"
        others = {"gain": "base", "gain − without bugs": right, "gain − whole": "sft_then_rl", "gain − best": best}
        for column, other in others.items():
            if run == other:
                assert row[column] == ""
            else:
                assert float(row[column].split()[0]) == pytest.approx(value[run] - value[other], abs=0.051), column
        assert row["seeds"] == ("1" if run == "sft_then_rl_buggy" else "3")
    assert tuple(frame.loc["sft_then_rl_buggy", ["micro_batches", "loss_mean"]]) == (
        "first and last", "mean of micro-batch means",
    )  # fmt: skip
    label = Style(plan.drawings[STUDY, "bug_effect"].recipe["looks"], (), ExhibitOptions()).label
    (said,) = answer.with_bugs(of_csv(render_files(made, "bug_effect")[0], label))
    assert "; of SFT it is " in said and "(buggy SFT, then GRPO) with them" in said and " of 9 of these bugs" in said
    with pytest.raises(UserError, match="'sfft' is none of the runs shown; did you mean 'sft'"):
        table(made, "bug_effect", STUDY, right={"sft_then_rl": ["sfft"]})
    alone = results.only(lambda result: result.run != "hpt")
    with pytest.raises(UserError, match="bug_effect: 'hpt' is not among its evaluated runs"):
        exhibits.find("bug_effect", made[1], "x").module.table(alone, options)


def test_the_cluster_has_three_seeds_of_the_buggy_chain(tmp_path):
    study = synthetic.plan_of(tmp_path, {"studies": [STUDY], "scale": "cluster"}).config.studies[STUDY]
    assert study.runs["sft_then_rl_buggy"].seeds == study.runs["sft_then_rl"].seeds == (42, 43, 44)


def test_what_further_methods_go_by_is_drawn_each_in_panels_of_its_own(made):
    frame = table(made, "steering", STUDY)
    shown_in = frame.groupby("column")["run"].unique().map(list).to_dict()
    assert shown_in == {column: [method] for method in ("chord", "uft", "sasr", "red") for column in LOGGED[method]} | {
        "frozen_share": ["mifo"]
    }
    frozen = frame[frame["column"] == "frozen_share"]
    assert frozen["value"].count() == 4 and frozen["smoothed"].iloc[-1] == 0.5
    figure = draw(made, "steering", STUDY)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 8 and all(axes.lines for axes in panels)
    with pytest.raises(UserError, match=r"no training log of chord, .* has a column 'muu'; did you mean 'mu'"):
        table(made, "steering", STUDY, columns={"muu": "x"})
    with pytest.raises(UserError, match="the training log of run 'chord' has no column"):
        table(made, "steering", STUDY, each_its_own=False)


@pytest.mark.parametrize("name", ["expert_share", "buffers", "gates", "entropy_weights", "prefixes"])
def test_what_methods_are_told_apart_by_is_drawn(name, made):
    assert len(draw(made, name, STUDY).axes) == len(made[0].drawings[STUDY, name].recipe["options"]["columns"])


def test_score_against_flops_has_every_evaluated_checkpoint(made):
    plan, _ = made
    frame = table(made, "score_flops", STUDY)
    for run, of_run in frame[frame["run"] != "base"].groupby("run"):
        spec = plan.config.studies[STUDY].runs[run]
        assert len(of_run) == len(spec.seeds) * min(
            spec.evaluated or 99, synthetic.CHECKPOINTS, spec.recipe.checkpoints
        )
        first = of_run[of_run["seed"] == spec.seeds[0]]
        assert first["x"].is_monotonic_increasing
    chained = frame[frame["run"] == "sft_then_rl"]["x"].min()
    assert chained > frame[frame["run"] == "sft"]["x"].max(), "it begins where SFT ended"
    assert len(draw(made, "score_flops", STUDY).axes[0].lines) >= len(set(frame["run"]))
