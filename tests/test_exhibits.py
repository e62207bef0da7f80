"""Exhibits on small synthetic results in the stages' own layout."""

import ast
import contextlib
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalpel import exhibits, published
from scalpel.artifact.files import write_atomically
from scalpel.artifact.manifest import difference
from scalpel.errors import UserError
from scalpel.exhibits import axis, drawing, equal_budget, paper_table, record, spent, uncertainty
from scalpel.exhibits.embedded import current
from scalpel.exhibits.options import ExhibitOptions
from scalpel.exhibits.render import _csv, render
from scalpel.exhibits.results import PROJECTIONS, Results, final, task_name, task_order
from scalpel.exhibits.style import PALETTE, Style
from scalpel.report.tables import of_csv
from tests import synthetic
from tests.synthetic import STUDY, checkpoint_steps

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (1, 2, 3)
FIGURES = ("grpo_rewards", "sft_loss", "benchmarks", "kl", "norms_grpo", "norms_sft", "norms_course", "controls")
TABLES = ("scores", "kl_final", "norms", "equal_budget")


def world(root: Path, raw: dict | None = None, edit=None, workflow: Path = synthetic.WORKFLOW):
    """(plan, root) with all results finished."""
    plan = synthetic.plan_of(root, raw, workflow)
    synthetic.finish_all(plan, root, edit)
    return plan, root


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    """One seed, evaluations in two shards."""
    return world(tmp_path_factory.mktemp("one"), {"overrides": {"evaluation_shards": 2}})


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    return world(tmp_path_factory.mktemp("three"), {"overrides": {"seeds": list(SEEDS), "evaluation_shards": 2}})


def shown(made, name: str, study: str = STUDY, **options):
    """(kind, results, options) of an exhibit, with options changed."""
    plan, root = made
    planned = plan.drawings[study, name]
    kind = exhibits.find(planned.recipe["kind"], root, name)
    whole = kind.options(planned.recipe["options"] | options, name)
    entries = json.loads(json.dumps([entry.record() for entry in planned.entries]))
    if "runs" in options:
        entries = [entry for run in options["runs"] for entry in entries if entry["run"] == run]
    return kind, Results.of_entries(entries, root / "results", planned.recipe.get("published")), whole


def table(made, name: str, study: str = STUDY, **options) -> pd.DataFrame:
    kind, results, whole = shown(made, name, study, **options)
    return kind.module.table(results, whole)


def draw(made, name: str, study: str = STUDY, frame: pd.DataFrame | None = None, **options):
    """The matplotlib figure of an exhibit, of `frame` if given."""
    kind, results, whole = shown(made, name, study, **options)
    frame = kind.module.table(results, whole) if frame is None else frame
    style = Style(made[0].drawings[study, name].recipe["looks"], results.runs, whole)
    with style.applied():
        figure = kind.module.draw(frame, whole, style)
        figure.draw_without_rendering()
    return figure


def make(made, name: str, study: str = STUDY) -> list[Path]:
    """Write an exhibit's recipe and files."""
    plan, root = made
    plan.record()
    render(root / plan.drawings[study, name].recipe_path)
    return [root / file for file in plan.drawings[study, name].files]


def parquet(made, stage: str, run: str, file: str, study: str = STUDY, seed: int | None = None) -> pd.DataFrame:
    """All shards of a run's results, read without the code under test."""
    plan, root = made
    found = [e for e in plan.entries[study] if (e.stage, e.run) == (stage, run) and seed in (None, e.seed)]
    return pd.concat([pd.read_parquet(root / e.step.directory / file).assign(seed=e.seed) for e in found])


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", [*FIGURES, *TABLES])
def test_every_file_says_what_it_shows(one_seed, name):
    files = make(one_seed, name)
    suffixes = ["csv"] if name in TABLES else ["csv", "pdf", "png", "svg"]
    assert sorted(file.suffix[1:] for file in files) == suffixes
    planned = one_seed[0].drawings[STUDY, name]
    for file in files:
        found = current(file)
        assert (found["digest"], found["study"], found["name"]) == (planned.digest, STUDY, name)
        assert "commit" in found
        if file.suffix == ".csv":
            assert "entries" not in found, "a line that a spreadsheet shows whole"
        else:
            assert [entry["step"] for entry in found["entries"]] == [e.step.directory for e in planned.entries]
    assert not list(files[0].parent.glob(".*")), "temporary files are gone"


def test_text_keeps_its_characters_on_the_way_to_a_page(tmp_path):
    """What looks like a number or like nothing, and ends of lines."""
    texts = ["NA", "null", "007", "1e5", "+1.0", "a\rb", 'c\n"d"\r\n', "nan"]
    frame = pd.DataFrame(
        {"text": texts, "count": range(9_998, 10_006), "value": [0.5, math.nan] + [1 / 3] * 6, "id": ["007"] * 8}
    )
    (tmp_path / "x.csv").write_bytes(_csv(frame, {"digest": "x"}))
    columns = dict(zip("tcvi", zip(*of_csv(tmp_path / "x.csv", str).rows, strict=True), strict=True))
    assert [cell.replace("\r\n", "\n") for cell in columns["t"]] == [text.replace("\r\n", "\n") for text in texts]
    assert columns["c"][:3] == ("9998", "9999", "10,000") and columns["v"][:3] == ("0.5", "–", "0.3333")
    assert set(columns["i"]) == {"007"}


def test_the_csv_holds_the_numbers_drawn(one_seed):
    (file,) = [file for file in make(one_seed, "kl") if file.suffix == ".csv"]
    pd.testing.assert_frame_equal(pd.read_csv(file, skiprows=1), table(one_seed, "kl"), check_dtype=False)


def test_files_are_the_same_on_every_run(one_seed):
    before = {file: file.read_bytes() for file in make(one_seed, "kl")}
    program = [sys.executable, "-m", "scripts.exhibit", str(recipe_of(one_seed, "kl"))]
    subprocess.run(program, check=True, cwd=synthetic.WORKFLOW.parent)
    assert {file: file.read_bytes() for file in before} == before


def recipe_of(made, name: str) -> Path:
    return made[1] / made[0].drawings[STUDY, name].recipe_path


@pytest.mark.parametrize("moment", range(12))  # the record removed, 4 files and the new record written, and none
def test_killed_at_any_moment_no_record_stands_over_other_files(one_seed, monkeypatch, moment):
    plan, _ = one_seed
    make(one_seed, "kl")
    planned = plan.drawings[STUDY, "kl"]
    opened = drawing.opened(recipe_of(one_seed, "kl"))
    files = [opened.place(name) for name in opened.files]
    steps = iter(range(100))

    def dying(act):
        def wrapper(*arguments, **names):
            if next(steps) == moment:
                raise KeyboardInterrupt
            return act(*arguments, **names)

        return wrapper

    assert plan.is_current(planned)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(drawing, "write_atomically", dying(write_atomically))
        patch.setattr(record, "write_atomically", dying(write_atomically))
        with contextlib.suppress(KeyboardInterrupt):
            drawing.put(opened, {file.name: b"other" for file in files})
    found = record.read(opened.place(opened.record))
    assert not found or all(difference(file, found["files"][file.name]) is None for file in files)
    assert plan.is_current(planned) == bool(found)
    for path in files[0].parent.glob(".*.tmp"):
        path.unlink()
    make(one_seed, "kl")
    assert plan.is_current(planned)


def test_a_recipe_of_other_code_is_refused(one_seed, monkeypatch):
    make(one_seed, "kl")
    path = recipe_of(one_seed, "kl")
    path.write_text(path.read_text().replace(one_seed[0].drawings[STUDY, "kl"].recipe["code"], "f" * 12))
    with pytest.raises(UserError, match="start snakemake again"):
        render(path)
    make(one_seed, "kl")


def test_unfinished_results_are_named(one_seed, capsys, monkeypatch):
    plan, root = one_seed
    plan.record()
    manifest = root / plan.drawings[STUDY, "kl"].entries[0].step.manifest
    content = manifest.read_bytes()
    manifest.unlink()
    try:
        with pytest.raises(UserError, match=r"kl shows results/kl/grpo\.math_500-\w+, which is not finished"):
            render(recipe_of(one_seed, "kl"))
        monkeypatch.setattr(sys, "argv", ["exhibit.py", str(recipe_of(one_seed, "kl"))])
        with pytest.raises(SystemExit) as end:
            drawing.run(render)
        assert end.value.code == 2 and capsys.readouterr().err.startswith("error: kl shows")
    finally:
        manifest.write_bytes(content)


@pytest.mark.parametrize("suffix", ["pdf", "png", "svg", "csv", "html"])
def test_files_that_say_nothing_are_named(tmp_path, suffix):
    path = tmp_path / f"kl.{suffix}"
    with pytest.raises(UserError, match="missing"):
        current(path)
    for content in (b"", b"%PDF <svg/> \x89PNG", b"# [1]\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"kl\.{suffix}"):
            current(path)


def test_the_plan_s_imports_are_light():
    heavy = ("torch", "matplotlib", "seaborn", "pandas")
    code = f"import sys, scalpel.plan; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=synthetic.WORKFLOW.parent).returncode == 0


# ---------------------------------------------------------------- reading


def test_no_seed_and_no_shard_is_lost(three_seeds):
    """Joining by step and task alone would leave one seed of three."""
    _, results, _ = shown(three_seeds, "benchmarks")
    assert len([r for r in results.found if (r.run, r.seed) == ("grpo", 1)]) == 2, "two shards"
    scores = results.scores()
    for run in ("grpo", "sft_3ep"):
        for seed in SEEDS:
            mine = scores[(scores["run"] == run) & (scores["seed"] == seed)]
            assert sorted(mine["step"].unique()) == checkpoint_steps(run)
            assert set(mine["task"]) == {"math_500", "gsm8k", "mmlu", "mmlu_pro", "ifeval_prompt", "ifeval_instruction"}
            assert len(mine) == 6 * len(checkpoint_steps(run))
    values = final(scores[scores["task"] == "math_500"]).groupby("run")["value"].nunique()
    assert values["grpo"] == 3, "each seed has a score of its own"


def test_two_results_with_the_same_score_are_an_error(one_seed):
    _, results, _ = shown(one_seed, "benchmarks")
    with pytest.raises(UserError, match="two results hold the scores of math_500 at step"):
        Results([*results.found, results.of("evaluate")[1]]).scores()


def test_read_gives_whose_each_row_is(three_seeds):
    _, results, _ = shown(three_seeds, "kl")
    frame = results.read("kl", "kl.parquet", ["step", "kl"])
    assert list(frame.columns) == ["run", "seed", "part", "shard", "reference", "step", "kl"]
    assert set(frame["seed"]) == set(SEEDS) and set(frame["part"]) == {"math_500"}
    assert len(frame) == sum(30 * len(checkpoint_steps(run)) for run in results.runs) * len(SEEDS)
    with pytest.raises(UserError, match=r"kl\.parquet has no column 'kll'; did you mean 'kl'"):
        results.read("kl", "kl.parquet", ["kll"])
    with pytest.raises(UserError, match="has results of stage evaluate"):
        results.read("evaluate", "scores.parquet")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), r"kl\.parquet is missing"),
        (lambda path: path.write_bytes(b"PAR1 nothing"), r"kl\.parquet is not what its manifest says"),
    ],
)
def test_a_damaged_result_is_named(tmp_path, damage, sentence):
    made = world(tmp_path)
    damage(tmp_path / made[0].drawings[STUDY, "kl"].entries[1].step.directory / "kl.parquet")
    made[0].record()
    with pytest.raises(UserError, match=sentence):
        render(recipe_of(made, "kl"))
    assert not list((tmp_path / "results" / "figures").rglob("*.png"))


def test_tasks_have_the_names_people_use():
    assert task_order(["zebra", "mmlu", "ant", "math_500"]) == ["math_500", "mmlu", "zebra", "ant"]
    assert [task_name(task) for task in ("math_500", "zebra")] == ["MATH-500", "zebra"]


def test_a_task_in_ifeval_s_format_has_two_scores_whatever_its_name(tmp_path):
    study = {"title": "s", "runs": {"a": {"method": "sft", "epochs": 1}}, "exhibits": {"final_scores": {}}}
    workflow = synthetic.workflow_with(tmp_path, study, "s")
    tasks = {"tasks": {"manners": {"questions": "ifeval"}}}

    def edit(stage, run, frame):
        if stage == "evaluate":
            metrics = ["prompt_level_strict_acc", "inst_level_strict_acc", "inst_level_loose_acc"]
            both = frame[(frame["task"] == "manners") & (frame["metric"] == "acc")]
            frame = pd.concat([frame[frame["task"] != "manners"], *(both.assign(metric=name) for name in metrics)])
        return frame

    made = world(tmp_path, {"studies": ["s"], "overrides": {"evaluation": tasks}}, edit, workflow)
    assert {"manners_prompt", "manners_instruction"} <= set(table(made, "final_scores", "s")["task"])
    assert "manners" not in set(table(made, "final_scores", "s")["task"])


# ---------------------------------------------------------------- standard errors


DECIDE_NO_NUMBER = (
    "artifact/", "config/", "plan/", "checkpoints.py", "errors.py", "progress.py", "published.py", "stages.py",
    "analysis/trace.py",  # of which figures take the names of kinds and positions
)  # fmt: skip


def imports(path: Path) -> set[str]:
    """Files of scalpel/ that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scalpel"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = ["/".join(name.split(".")[1:]) + ".py" for name in names]
            found |= {file for file in files if (ROOT / "scalpel" / file).is_file()}
    return {file for file in found if not file.startswith(DECIDE_NO_NUMBER)}


@pytest.mark.parametrize("kind", [*exhibits.kinds(), "report"])
def test_whatever_decides_an_exhibit_is_in_its_code(kind, monkeypatch):
    """So that a change of it draws the exhibit again."""
    hashed: list[Path] = []
    monkeypatch.setattr(exhibits, "_code", lambda *paths: hashed.extend(paths) or "")
    exhibits.report_code() if kind == "report" else exhibits.find(kind, ROOT, "here")
    there = {path.relative_to(ROOT / "scalpel").as_posix() for path in hashed if path.is_relative_to(ROOT / "scalpel")}
    wanted = {file: imports(ROOT / "scalpel" / file) for file in there if file.endswith(".py")}
    wanted.pop("exhibits/__init__.py")
    assert {file: of - there for file, of in wanted.items() if of - there} == {}


def test_standard_error_joins_questions_and_seeds():
    assert uncertainty.standard_error([0.5], [0.04]) == 0.04
    values, errors = [0.4, 0.5, 0.9], [0.03, 0.04, 0.05]
    expected = math.sqrt(np.mean(np.square(errors)) + np.var(values, ddof=1) / 3)
    assert uncertainty.standard_error(values, errors) == pytest.approx(expected)
    assert uncertainty.standard_error([0.5, 0.5], [0.03, 0.03]) == pytest.approx(0.03), "seeds do not lessen it"
    assert uncertainty.standard_error(values) == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert math.isnan(uncertainty.standard_error([0.5]))


def test_values_that_are_no_seeds_are_not_joined(one_seed):
    frame = table(one_seed, "controls")
    with pytest.raises(UserError, match="value: there are several values of one seed for run base"):
        uncertainty.joined(frame, ["run"], "value", "stderr")


def test_seeds_of_unlike_many_checkpoints_are_paired_by_step(three_seeds):
    """A seed without one of its checkpoints: the others' keep their numbers."""
    results = shown(three_seeds, "equal_budget")[1]
    scores = results.scores()
    whole = results.placed(scores)
    steps = sorted(set(scores.loc[scores["run"] == "grpo", "step"]))
    gone = (scores["run"] == "grpo") & (scores["seed"] == SEEDS[1]) & (scores["step"] == steps[1])
    assert gone.sum() > 0 and len(steps) > 2
    pd.testing.assert_frame_equal(results.placed(scores[~gone]), whole[~gone], check_exact=False)


class Scores:
    """Of three runs, (run, seed, step, task) each 0.5 but y, 0.7."""

    def __init__(self, *rows: tuple):
        self.rows = pd.DataFrame(rows, columns=["run", "seed", "step", "task"])

    def scores(self) -> pd.DataFrame:
        return self.rows.assign(value=self.rows["task"].map({"x": 0.5, "y": 0.7}))


def test_a_mean_is_of_all_its_tasks_or_of_none():
    both = [(run, seed, 5, task) for run, seed in (("a", 1), ("a", 2), ("c", 1)) for task in "xy"]
    found = paper_table.ours(Scores(*both, ("b", 1, 5, "x"), ("c", 2, 5, "x")), {"mean": ("x", "y", "asked of nobody")})
    assert found["a"]["mean"] == pytest.approx((60, 0))
    assert "mean" not in found["b"] and found["b"]["x"][0] == 50
    assert math.isnan(found["c"]["mean"][0]), "one of its seeds was not asked y"


def test_equal_budgets_leave_out_tasks_of_last_checkpoints_alone():
    """Else no run would have a checkpoint but its last."""
    rows = [("a", 1, step, "x") for step in (5, 10)] + [("a", 1, 10, "y"), ("base", 0, 0, "x"), ("base", 0, 0, "y")]
    assert set(equal_budget.of_every_checkpoint(Scores(*rows).scores())["task"]) == {"x"}
    assert set(equal_budget.of_every_checkpoint(Scores(*rows, ("a", 1, 5, "y")).scores())["task"]) == {"x", "y"}


@pytest.mark.parametrize("made", ["one_seed", "three_seeds"])
@pytest.mark.parametrize("of", [[], ["sft_1ep", "sft_own_all"]])
def test_equal_budgets_take_the_last_checkpoint_within_what_named_runs_spent(made, of, request):
    """Against a loop over checkpoints, and plain means; intervals hold the value and are wider than nothing."""
    made = request.getfixturevalue(made)
    gain = ["math_500", "gsm8k", "aime24"]
    kind, results, options = shown(made, "equal_budget", of=of, gain=gain)
    frame = kind.module.table(results, options)
    placed = {axis_name: results.placed(results.scores(), axis_name) for axis_name in ("questions", "flops")}
    runs = [run for run in results.runs if run != "base"]
    named, none, early = of or runs[:1], 0, 0
    assert frame["run"].tolist() == 2 * len(named) * runs and frame["whose"].drop_duplicates().tolist() == named
    for number, (budget, whose) in enumerate((budget, whose) for budget in placed.values() for whose in named):
        limit = budget[budget["run"] == whose]["x"].max()
        most = budget[budget["run"] == "grpo"].groupby("checkpoint")["task"].nunique().max()
        for row in frame[number * len(runs) : (number + 1) * len(runs)].to_dict("records"):
            assert row["whose"] == whose
            mine = budget[budget["run"] == row["run"]]
            complete = [n for n, of_it in mine.groupby("checkpoint") if of_it["task"].nunique() == most]
            within = [n for n in complete if mine[mine["checkpoint"] == n]["x"].iloc[0] <= limit]
            if not within:
                assert "none within it: its first took " in row["step"] and not row["gain"] and not row["kept − first"]
                none += 1
                continue
            at = mine[mine["checkpoint"] == within[-1]]
            early += at["x"].iloc[0] == mine["x"].max() < limit
            here = at.groupby("task")["value"].mean()
            base = budget[budget["run"] == "base"].groupby("task")["value"].mean()
            for name, tasks in (("gain", ["math_500", "gsm8k"]), ("kept", ["mmlu", "mmlu_pro", "ifeval_prompt"])):
                value, low, high = map(float, re.findall(r"[+-]\d+\.\d", row[name]))
                assert value == pytest.approx(100 * (here[tasks] - base[tasks]).mean(), abs=0.051)
                assert low < value < high
            assert (row["gain − whose"] == "") == (row["run"] == whose)
            assert of or (row["gain − first"] == "") == (row["run"] == runs[0])
    assert early, "who ended earlier stands at its end"
    assert bool(none) == bool(of), "GRPO's first checkpoint takes more than the cheapest SFT in all"
    assert len(set(frame["step"])) > 2


def test_equal_budgets_of_runs_that_spent_as_much_are_one(one_seed):
    frame = table(one_seed, "equal_budget", of=["grpo", "sft_matched"], budgets=["questions", "steps"])
    assert set(frame["whose"]) == {"grpo and sft_matched"} and len(set(frame["budget"])) == 2
    assert {row["whose"] for row in named(one_seed, frame)} == {"GRPO and SFT, GRPO's questions"}


def named(made, frame: pd.DataFrame) -> list[dict]:
    """Rows as the page has them."""
    label = Style(made[0].drawings[STUDY, "equal_budget"].recipe["looks"], (), ExhibitOptions()).label
    path = made[1] / "equal.csv"
    path.write_bytes(_csv(frame, {"digest": "x"}))
    found = of_csv(path, label)
    return [dict(zip((column.name for column in found.columns), row, strict=True)) for row in found.rows]


def test_a_budget_that_cannot_be_counted_says_why(one_seed):
    kind, results, options = shown(one_seed, "equal_budget", of=["sft_1ep", "grpo"], budgets=["seconds"])
    without = results.only(lambda result: True)
    log = next(r.step for r in results.of("train") if r.run == "sft_1ep") / "provenance.json"
    content = log.read_text()
    log.write_text("{}")
    try:
        frame = kind.module.table(without, options)
    finally:
        log.write_text(content)
    own = frame[frame["whose"] == "sft_1ep"]
    assert len(own) == 1 and "has no step_seconds" in own["step"].iloc[0]
    there = frame[(frame["whose"] == "grpo") & (frame["run"] == "sft_1ep")]
    assert "has no step_seconds" in there["step"].iloc[0]


def test_equal_budgets_need_the_base_model_and_a_task_asked(one_seed):
    kind, results, options = shown(one_seed, "equal_budget", runs=["grpo", "sft_1ep"])
    with pytest.raises(UserError, match="base model"):
        kind.module.table(results, options)
    kind, results, options = shown(one_seed, "equal_budget", gain=["aime24"])
    with pytest.raises(UserError, match="`gain` names none of the tasks asked, which are math_500, gsm8k"):
        kind.module.table(results, options)
    with pytest.raises(UserError, match="of: 'gpro' is none of the runs shown; did you mean 'grpo'"):
        shown(one_seed, "equal_budget", runs=["base", "grpo"], of=["gpro"])
    kind, results, _ = shown(one_seed, "equal_budget", runs=["base", "grpo"])
    with pytest.raises(UserError, match="of: 'absent' is none of the runs shown, which are grpo"):
        kind.module.table(results, kind.options({"of": ["absent"]}, "equal_budget"))


def test_nobody_s_score_is_certain():
    assert uncertainty.question_error(0.5, 0.1, 9) == 0.1
    assert uncertainty.question_error(1.0, 0.0, 8) == pytest.approx(math.sqrt(0.9 * 0.1 / 10))
    assert uncertainty.question_error(0.0, math.nan, 1) == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 3))
    assert uncertainty.binomial_error(0.35, 500) == pytest.approx(math.sqrt(0.35 * 0.65 / 500))


# ---------------------------------------------------------------- tables, compared with plain code on the files


def test_table_of_training_curves(one_seed):
    frame = table(one_seed, "sft_loss")
    for run in ("sft_1ep", "sft_3ep", "sft_matched"):
        log = parquet(one_seed, "train", run, "log.parquet")
        mine = frame[(frame["run"] == run) & (frame["column"] == "loss")]
        np.testing.assert_array_equal(mine["x"], log["step"])
        np.testing.assert_array_equal(mine["value"], log["loss"])
        weights = 0.7 ** np.arange(len(log))[::-1]
        assert mine["smoothed"].iloc[-1] == pytest.approx(np.average(log["loss"], weights=weights))
        assert mine["smoothed"].iloc[0] == pytest.approx(log["loss"].iloc[0])
    assert set(frame["column"]) == {"loss", "grad_norm"}


def plain_scores(made, run: str, seed: int) -> pd.DataFrame:
    """Value and stderr by (step, task) for tasks whose first metric is shown."""
    scores = parquet(made, "evaluate", run, "scores.parquet", seed=seed)
    scores = scores[scores["metric"].isin(["acc", "prompt_level_strict_acc", "inst_level_strict_acc"])]
    level = scores["metric"].map({"prompt_level_strict_acc": "_prompt", "inst_level_strict_acc": "_instruction"})
    return scores.assign(task=scores["task"] + level.fillna("")).set_index(["step", "task"])[["value", "stderr"]]


def test_table_of_benchmarks(three_seeds):
    frame = table(three_seeds, "benchmarks")
    assert frame["run"].drop_duplicates().tolist() == ["base", "grpo", "sft_1ep", "sft_3ep", "sft_matched"]
    for run in ("grpo", "sft_matched"):
        for seed in SEEDS:
            mine = frame[(frame["run"] == run) & (frame["seed"] == seed)].set_index(["step", "task"])
            expected = plain_scores(three_seeds, run, seed)
            assert len(mine) == len(expected)
            np.testing.assert_array_equal(mine["value"], expected["value"].reindex(mine.index))
            np.testing.assert_array_equal(mine["stderr"], expected["stderr"].reindex(mine.index))
            np.testing.assert_array_equal(mine["x"], mine.index.get_level_values("step"))


def test_table_of_final_scores(one_seed):
    frame = table(one_seed, "controls").set_index(["run", "task"])
    assert set(frame["step"]) == {0, 30, 35, 100}
    for run, step in (("base", 0), ("sft_own_all", 30)):
        expected = plain_scores(one_seed, run, 0 if run == "base" else 42).loc[step]
        np.testing.assert_array_equal(frame.loc[run]["value"], expected["value"].reindex(frame.loc[run].index))


def ours(made, name: str, **options) -> pd.DataFrame:
    """The rows of a table that are no published ones."""
    frame = table(made, name, **options)
    return frame[frame["source"] == "ours"]


def test_table_of_kl(three_seeds):
    frame = ours(three_seeds, "kl")
    questions = parquet(three_seeds, "kl", "sft_3ep", "kl.parquet", seed=2)
    mine = frame[(frame["run"] == "sft_3ep") & (frame["seed"] == 2)].set_index("step")
    for column in ("kl", "kl_solution"):
        by_step = questions.groupby("step")[column]
        np.testing.assert_allclose(mine[column], by_step.mean())
        np.testing.assert_allclose(mine[f"{column}_stderr"], by_step.std() / math.sqrt(30))
    assert (
        set(mine["questions"]) == {30} and len(frame) == sum(map(len, map(checkpoint_steps, frame["run"].unique()))) * 3
    )


def test_table_of_weight_change(one_seed):
    frame = ours(one_seed, "norms_sft")
    expected = parquet(one_seed, "weight_change", "sft_3ep", "weight_change.parquet")
    keys = ["step", "layer", "projection"]
    pd.testing.assert_series_equal(
        frame.set_index(keys)["relative"].sort_index(), expected.set_index(keys)["relative"].sort_index()
    )
    assert set(frame["run"]) == {"sft_3ep"}


def test_scores_table_stands_beside_the_published_numbers(three_seeds):
    frame = table(three_seeds, "scores").set_index(["benchmark", "of"])
    ours = pd.concat([plain_scores(three_seeds, "grpo", seed).loc[(100, "math_500")] for seed in SEEDS], axis=1)
    error = math.sqrt(np.mean(ours.loc["stderr"] ** 2) + np.var(ours.loc["value"], ddof=1) / 3)
    assert frame.loc[("MATH-500", "here"), "grpo"] == pytest.approx(100 * ours.loc["value"].mean())
    assert frame.loc[("MATH-500", "here"), "grpo ±"] == pytest.approx(100 * error)
    assert frame.loc[("MATH-500", "published"), "grpo"] == pytest.approx(40.2)
    assert frame.loc[("MATH-500", "published"), "grpo ±"] == pytest.approx(100 * math.sqrt(0.402 * 0.598 / 500))
    assert ("AIME24", "here") not in frame.index and math.isnan(frame.loc[("GSM8k", "published"), "sft_matched"])
    assert list(frame.columns[::2]) == [
        "base",
        "grpo",
        "sft_1ep",
        "sft_3ep",
        "sft_matched",
        "sft_grpo_rate_1ep",
        "sft_own_all",
    ]


def test_kl_table_has_rows_of_published_runs_too(one_seed):
    frame = table(one_seed, "kl_final").set_index("run")
    last = parquet(one_seed, "kl", "grpo", "kl.parquet").query("step == 100")["kl"]
    assert frame.loc["grpo", "all positions"] == pytest.approx(last.mean())
    assert frame.loc["grpo", "all positions ±"] == pytest.approx(last.sem())
    assert frame.loc["grpo", "published"] == pytest.approx(0.4297, abs=1e-4)
    assert frame.loc["sft_lr_1e-6", "published"] == pytest.approx(3.672, abs=1e-3)
    assert math.isnan(frame.loc["sft_lr_1e-6", "all positions"]) and math.isnan(frame.loc["sft_1ep", "published"])
    assert list(table(one_seed, "kl_final", runs=["sft_3ep"])["run"]) == ["sft_3ep"]


def test_weight_change_table_ranks_projections(three_seeds):
    frame = table(three_seeds, "norms").set_index(["run", "projection"])
    change = parquet(three_seeds, "weight_change", "grpo", "weight_change.parquet").query("step == 100")
    by_seed = change.groupby(["seed", "projection"])["relative"].mean().unstack()
    mean, mine = by_seed.mean(), frame.loc["grpo"]
    np.testing.assert_allclose(mine["relative change"], [mean[name] for name in PROJECTIONS])
    np.testing.assert_allclose(mine["relative change ±"], [by_seed[name].sem() for name in PROJECTIONS])
    assert mine["rank"].tolist() == [1 + sum(mean > mean[name]) for name in PROJECTIONS]
    assert frame.loc[("sft_3ep", "query"), "published rank"] == 1
    assert frame.loc[("sft_3ep", "query"), "published"] == pytest.approx(0.0642, abs=1e-4)


# ---------------------------------------------------------------- figures show their frames


def band(collection) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) edge of a fill_between."""
    path = collection.get_paths()[0].vertices
    n = (len(path) - 3) // 2
    return path[1 : n + 1, 1], path[n + 2 : 2 * n + 2, 1][::-1]


@pytest.mark.parametrize("made", ["one_seed", "three_seeds"])
def test_curves_are_means_over_seeds_with_bands_of_one_standard_error(made, request):
    made = request.getfixturevalue(made)
    frame = ours(made, "kl", runs=["sft_3ep"])
    axes = draw(made, "kl", runs=["sft_3ep"]).axes[0]
    seeds = frame["seed"].nunique()
    by_step = frame.groupby("step")
    mean = by_step["kl"].mean()
    error = np.sqrt((by_step["kl_stderr"].apply(lambda e: np.mean(e**2))) + by_step["kl"].var().fillna(0) / seeds)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), checkpoint_steps("sft_3ep"))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), mean)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), by_step["kl_solution"].mean())
    lower, upper = band(axes.collections[0])
    np.testing.assert_allclose(lower, mean - error)
    np.testing.assert_allclose(upper, mean + error)


@pytest.mark.parametrize("made", ["one_seed", "three_seeds"])
def test_bars_are_means_over_seeds_with_whiskers_of_one_standard_error(made, request):
    made = request.getfixturevalue(made)
    runs = ("base", "sft_1ep", "sft_grpo_rate_1ep", "sft_own_all")
    frame = table(made, "controls", runs=runs)
    axes = draw(made, "controls", runs=runs).axes[0]
    tasks = ["math_500", "gsm8k", "mmlu", "mmlu_pro", "ifeval_prompt"]
    assert len(axes.get_xticks()) == len(tasks) and "ifeval_instruction" in set(frame["task"])
    heights = [[patch.get_height() for patch in container.patches] for container in axes.containers[:4]]
    middles = [[patch.get_x() + patch.get_width() / 2 for patch in c.patches] for c in axes.containers[:4]]
    segments = {round(s[0][0], 6): (s[0][1], s[1][1]) for c in axes.collections for s in c.get_segments()}
    for run, mine, places in zip(runs, heights, middles, strict=True):
        for task, height, place in zip(tasks, mine, places, strict=True):
            rows = frame[(frame["run"] == run) & (frame["task"] == task)]
            assert height == pytest.approx(100 * rows["value"].mean())
            error = 100 * uncertainty.standard_error(list(rows["value"]), list(rows["stderr"]))
            assert segments[round(place, 6)] == pytest.approx((height - error, height + error))


def test_benchmarks_draw_bars_and_a_panel_per_benchmark(three_seeds):
    """IFEval is one: its prompts are drawn, its single instructions stand in the table; panels that are cut say so."""
    figure = draw(three_seeds, "benchmarks")
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["", "MATH-500", "GSM8k", "MMLU", "MMLU-Pro", "IFEval, prompts"]
    assert len({axes.get_ylim() for axes in figure.axes[1:6]}) > 1 and figure.axes[0].get_ylim() == (0, 100)
    assert "each panel's scale is cut to its own scores" in figure.subfigs[1].get_supxlabel()
    frame = table(three_seeds, "benchmarks")
    assert set(frame["task"]) == {"math_500", "gsm8k", "mmlu", "mmlu_pro", "ifeval_prompt", "ifeval_instruction"}
    mine = frame[(frame["run"] == "grpo") & (frame["task"] == "gsm8k")]
    curves = [line.get_ydata() for line in figure.axes[2].lines if len(line.get_xdata()) == synthetic.CHECKPOINTS]
    assert any(np.allclose(curve, 100 * mine.groupby("step")["value"].mean()) for curve in curves)
    base = frame[(frame["run"] == "base") & (frame["task"] == "gsm8k")]["value"].iloc[0]
    assert figure.axes[2].lines[0].get_ydata()[0] == pytest.approx(100 * base)


def test_weight_change_draws_each_checkpoint_and_the_mean(three_seeds):
    figure = draw(three_seeds, "norms_sft")
    frame = ours(three_seeds, "norms_sft")
    query = frame[frame["projection"] == "q_proj"]
    assert len(figure.axes[0].lines) == synthetic.CHECKPOINTS + 1, "the last one twice, thick on top"
    last = query[query["step"] == 105].groupby("layer")["relative"].mean()
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), last)
    np.testing.assert_allclose(figure.axes[7].lines[0].get_ydata(), query.groupby("step")["relative"].mean())


def test_training_curves_smooth_each_seed_and_show_the_mean(three_seeds):
    frame = table(three_seeds, "grpo_rewards")
    axes = draw(three_seeds, "grpo_rewards").axes[0]
    assert len(axes.lines) == 3 + 1 and axes.get_ylim() == (-0.02, 1.02)
    accuracy = frame[frame["column"] == "accuracy_reward"]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), accuracy.groupby("step")["smoothed"].mean())


def test_on_a_logarithmic_axis_logarithms_are_smoothed_and_zeros_are_gaps(tmp_path):
    """An average of zeros would fall for ever, as if something went on shrinking."""

    def vanishing(stage, run, frame):
        if "grad_norm" in frame and run == "grpo":
            frame["grad_norm"] = np.where(frame["step"] > 50, 0.0, 0.1)
        return frame

    made = world(tmp_path, edit=vanishing)
    columns = {"columns": {"grad_norm": "norm"}, "runs": ["grpo"], "limits": None}
    frame = table(made, "grpo_rewards", **columns, log_y=True)
    np.testing.assert_allclose(frame[frame["step"] <= 50]["smoothed"], 0.1)
    assert frame[frame["step"] > 50]["smoothed"].isna().all()
    assert (table(made, "grpo_rewards", **columns)["smoothed"] > 0).all()


@pytest.mark.parametrize(
    ("sizes", "partial"),
    [
        ({"questions": [8, 8, 8, 3], "tokens": [90, 50, 70, 60]}, True),
        ({"questions": [8, 8, 8, 8], "tokens": [90, 50, 70, 20]}, False),  # as many questions, shorter ones
        ({"questions": [9, 7, 8, 9], "tokens": [101, 103, 100, 40]}, True),  # steps up to a budget of tokens
        ({"questions": [9, 7, 8, 3], "tokens": [101, 103, 100, 104]}, False),
        ({"tokens": [101.0, 103.0, 100.0, 40.0]}, True),
        ({"questions": [None] * 4, "tokens": [101.0, None, 100.0, 40.0]}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("log_y", [False, True])
def test_a_last_step_of_fewer_questions_is_no_spike(sizes, partial, log_y, tmp_path):
    """It stays in the csv, is neither drawn nor averaged, and the legend says so."""

    def ends(stage, run, frame):
        if stage == "train" and run == "sft_1ep" and "loss" in frame:
            frame = frame.drop(columns=["questions", "tokens"]).head(4)
            frame = frame.assign(loss=[1.0, 1.0, 1.0, 9.0], **sizes)
        return frame

    made = world(tmp_path, edit=ends)
    options = {"columns": {"loss": "loss"}, "runs": ["sft_1ep"], "log_y": log_y}
    frame = table(made, "sft_loss", **options)
    assert frame["value"].tolist() == [1, 1, 1, 9] and frame["partial"].tolist() == [False] * 3 + [partial]
    figure = draw(made, "sft_loss", **options)
    raw, average = figure.axes[0].lines
    assert list(raw.get_ydata()) == [1, 1, 1, 9][: 4 - partial]
    np.testing.assert_allclose(average.get_ydata(), frame["smoothed"].dropna())
    assert (frame["smoothed"].max() == pytest.approx(1)) == partial and frame["smoothed"].isna().sum() == partial
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("smaller last steps left out" in said) == partial


def test_a_figure_holds_its_legend_however_many_runs_it_shows(tmp_path):
    """Names side by side fit its width, and where its parts do not fit it grows."""
    many = {f"run_{n}": {"method": "sft", "epochs": 1, "seeds": [n]} for n in range(9)}
    names = {run: {"label": f"SFT on the answers of somebody number {run}"} for run in many}
    exhibits_ = {
        "scores": {"kind": "final_scores"},
        "small": {"kind": "final_scores", "width_inches": 5, "height_inches": 1.2},
    }
    whole = {"title": "Many", "runs": many, "looks": names, "exhibits": exhibits_}
    made = world(tmp_path, workflow=synthetic.workflow_with(tmp_path, whole))
    for name in exhibits_:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="constrained_layout not applied")
            make(made, name)
    figure = draw(made, "scores")
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width + 1


def test_each_measure_of_kl_has_a_panel(tmp_path):
    made = world(tmp_path, {"overrides": {"kl": {"gsm8k": {}}}})
    assert set(table(made, "kl")["measure"]) == {"math_500", "gsm8k"}
    panels = draw(made, "kl").axes
    assert [axes.get_title() for axes in panels] == ["MATH-500", "GSM8k", "MATH-500, published"]
    others = {axes.get_ylim() != panels[0].get_ylim(): axes.get_ylabel() for axes in panels[1:]}
    assert others[True] == "nats per position,\non a scale of its own" and not others.get(False)
    assert set(table(made, "kl_final").dropna(subset=["published"])["measure"]) == {"math_500"}


def test_a_single_point_is_seen(tmp_path):
    made = world(tmp_path, edit=one_checkpoint)
    assert {line.get_marker() for line in draw(made, "sft_loss").axes[0].lines[-3:]} == {"o"}
    assert {line.get_marker() for line in draw(made, "norms_sft").axes[7].lines} == {"o"}


def test_a_figure_shows_its_frame_and_nothing_else(one_seed):
    """What is drawn follows the frame, whatever the results are."""
    frame = table(one_seed, "kl", runs=["grpo"]).assign(kl=7.0)
    assert set(draw(one_seed, "kl", frame=frame, runs=["grpo"]).axes[0].lines[0].get_ydata()) == {7.0}


# ---------------------------------------------------------------- options and looks


def test_options_change_the_figure(one_seed):
    chosen = {"title": "Mine", "width_inches": 5, "runs": ["sft_3ep"], "labels": {"sft_3ep": "hammer"}, "log_y": True}
    figure = draw(one_seed, "kl", **chosen)
    assert figure.get_suptitle() == "Mine" and figure.get_figwidth() == 5
    assert figure.axes[0].get_yscale() == "log" and len(figure.axes[0].lines) == 2
    assert "hammer" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_look_as_the_study_says_and_others_take_what_is_left():
    looks = {"a": {"label": "A", "color": PALETTE[0].lower(), "marker": "D"}, "b": {"label": None, "color": None}}
    style = Style(looks, ["a", "b", "c"], ExhibitOptions(labels={"c": "see"}))
    assert [style.label(run) for run in ("a", "b", "c", "d")] == ["A", "b", "see", "d"]
    assert [style.colors[run] for run in "abc"] == list(PALETTE[:3])
    assert style.markers["a"] == "D" and len(set(style.markers.values())) == 3
    many = Style({}, [f"r{i}" for i in range(20)], ExhibitOptions())
    pairs = {(many.colors[run], many.markers[run]) for run in many.runs}
    assert len(pairs) == 20, "more runs than colours differ by their markers"


@pytest.mark.parametrize(
    ("exhibit", "sentence"),
    [
        ({"kl": {"titel": "x"}}, "exhibits.kl: unknown key 'titel'; did you mean 'title'"),
        ({"kl": {"width_inches": -1}}, "width_inches"),
        ({"kll": {}}, "no exhibit is named 'kll'; did you mean 'kl'"),
        ({"kl": {"runs": ["luffy"]}}, "'luffy' is no run of study"),
        ({"kl": {"runs": ["base"]}}, "none of its runs has results of stage kl"),
        (
            {"kl": {"runs": ["grpo"], "labels": {"gpro": "GRPO"}}},
            "'gpro' is none of the runs shown; did you mean 'grpo'",
        ),
        ({"kl": {"x": "days"}}, "exhibits.kl: x"),
        ({"training_curves": {"runs": ["grpo"]}}, "columns: field required"),
        ({"weight_change": {}}, "runs: field required"),
        ({"weight_change": {"runs": ["grpo", "sft_3ep"]}}, "runs: tuple should have at most 1 item"),
        ({"mine": {"kind": "gone.py"}}, "gone.py does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, exhibit, sentence):
    workflow = synthetic.workflow_with(tmp_path, synthetic.study_file() | {"exhibits": exhibit})
    with pytest.raises(UserError) as error:
        synthetic.plan_of(tmp_path, {}, workflow)
    assert sentence in str(error.value)


def test_looks_that_cannot_be_drawn_are_found_before_anything_runs(tmp_path):
    workflow = synthetic.workflow_with(tmp_path, synthetic.study_file() | {"looks": {"grpo": {"marker": "q"}}})
    with pytest.raises(UserError, match=r"looks\.grpo\.marker"):
        synthetic.plan_of(tmp_path, {}, workflow)


def test_columns_and_runs_without_a_log_are_named(one_seed):
    with pytest.raises(UserError, match="training log of run 'grpo' has no column 'accuracy_rewards'; did you mean"):
        table(one_seed, "grpo_rewards", columns={"accuracy_rewards": "x"})


def test_runs_of_another_study_can_be_shown(tmp_path):
    study = {"title": "s", "runs": {"mine": {"method": "sft", "epochs": 2}},
             "exhibits": {"kl": {"runs": ["mine", f"{STUDY}/grpo"]}}}  # fmt: skip
    workflow = synthetic.workflow_with(tmp_path, study, "s")
    made = world(tmp_path, {"studies": ["s", STUDY]}, workflow=workflow)
    frame = table(made, "kl", "s")
    assert frame["run"].drop_duplicates().tolist() == ["mine", f"{STUDY}/grpo"]
    assert [text.get_text() for text in draw(made, "kl", "s").legends[0].get_texts()][1] == f"{STUDY}/grpo"


# ---------------------------------------------------------------- x axes


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Runs `first`, `then` (from first, on first's own answers) and `made` (elsewhere, with no log)."""
    root = tmp_path_factory.mktemp("chain")
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("weights")
    study = {
        "title": "s",
        "runs": {
            "first": {"method": "sft", "epochs": 1},
            "then": {"method": "sft", "epochs": 1, "start_from": "first", "data_from": "first"},
            "made": {"given": {"kind": "local", "checkpoints": {10: str(model)}}},
        },
        "exhibits": {"kl": {}, "start": {"kind": "kl", "reference": "start", "runs": ["then"]},
                     "norms": {"kind": "weight_change_table", "runs": ["then", "first"]},
                     "loss": {"kind": "training_curves", "columns": {"loss": "loss"}}},
    }  # fmt: skip
    workflow = synthetic.workflow_with(root, study, "s")
    plan = synthetic.plan_of(root, {"studies": ["s"]}, workflow)
    whose = {e.step.digest: e for e in plan.entries["s"]}
    for step in plan.steps.values():
        entry = whose.get(step.digest)
        content = synthetic.made_up(entry.stage, entry.run, entry.seed, step.recipe) if entry else {}
        if step.stage == "generate":
            content = {"spent.json": json.dumps({"read_tokens": 1000, "written_tokens": 500, "flops": 7e9})}
            content["kept.parquet"] = synthetic.KEPT
        if step.stage == "given":
            content = {"checkpoints.json": synthetic.checkpoints_json([10])}
        if entry and entry.run == "made" and entry.stage == "kl":
            content["kl.parquet"] = content["kl.parquet"].query("step == 10")
        synthetic.finish(step, root, content)
    return plan, root


def chain_log(chain, run: str) -> pd.DataFrame:
    return parquet(chain, "train", run, "log.parquet", "s")


def counted(chain, run: str) -> pd.DataFrame:
    """FLOPs of each step; those of log.parquet leave attention out."""
    (step,) = (e.step for e in chain[0].entries["s"] if (e.stage, e.run) == ("train", run))
    found = spent.of_run(chain[1] / step.directory)
    assert not np.allclose(found["trained"], chain_log(chain, run)["flops"])
    return found


@pytest.mark.parametrize(
    ("name", "columns", "answers"),
    [
        ("questions", ["questions"], 0),
        ("tokens", ["tokens", "written"], 1500),
        ("flops", ["trained", "scored", "written"], 7e9),
    ],
)
def test_an_axis_counts_the_whole_chain(chain, name, columns, answers):
    frame = table(chain, "kl", "s", x=name, runs=["first", "then"])
    of_steps = counted if name == "flops" else chain_log
    first, then = (of_steps(chain, run)[columns].sum(axis=1).to_numpy() for run in ("first", "then"))
    steps = checkpoint_steps("then")
    of_first, of_then = (frame[frame["run"] == run].sort_values("step")["x"] for run in ("first", "then"))
    np.testing.assert_allclose(of_first, [first[:step].sum() for step in steps])
    np.testing.assert_allclose(of_then, [first.sum() + answers + then[:step].sum() for step in steps])
    label = draw(chain, "kl", "s", x=name, runs=["first", "then"]).axes[0].get_xlabel()
    assert label == axis.LABELS[name]


def test_wall_time_of_steps_comes_from_the_clock_of_the_run(chain, one_seed, tmp_path):
    seconds = np.cumsum([0.5 + step % 3 for step in range(1, 41)])
    frame = table(chain, "kl", "s", x="seconds", runs=["first"]).sort_values("step")
    np.testing.assert_allclose(frame["x"], [seconds[step - 1] for step in checkpoint_steps("first")])
    with pytest.raises(UserError, match=r"run 'then' cannot be shown over seconds .* answers"):
        table(chain, "kl", "s", x="seconds", runs=["then"])
    with pytest.raises(UserError, match=r"run 'made' cannot be shown over seconds .*provenance\.json has no step_sec"):
        table(chain, "kl", "s", x="seconds", runs=["made"])
    equal = table(one_seed, "equal_budget", budgets=["seconds"], runs=["base", "grpo", "sft_1ep"])
    assert set(equal["budget"]) == {f"{sum(0.5 + step % 3 for step in range(1, 101)):,.0f} seconds"}
    assert equal["step"].astype(int).tolist() == [100, 35]


def test_steps_count_the_chain_and_need_no_log(chain):
    frame = table(chain, "kl", "s")
    for run, before in (("first", 0), ("then", 40), ("made", 0)):
        mine = frame[frame["run"] == run]
        np.testing.assert_array_equal(mine["x"], mine["step"] + before)
    loss = table(chain, "loss", "s", runs=["first", "then"])
    assert loss[loss["run"] == "then"]["x"].min() == 41


def test_a_run_without_a_count_is_named(chain, tmp_path):
    with pytest.raises(UserError, match=r"run 'made' cannot be shown over tokens .*log\.parquet is missing"):
        table(chain, "kl", "s", x="tokens")
    with pytest.raises(UserError, match="run 'made' has no training log"):
        table(chain, "loss", "s")
    shutil.copytree(chain[1], tmp_path / "copy")
    copy = chain[0], tmp_path / "copy"
    step = next(e.step for e in chain[0].entries["s"] if (e.stage, e.run) == ("train", "first"))
    log = chain_log(chain, "first").drop(columns="seed")
    synthetic.finish(step, copy[1], {"log.parquet": log.drop(columns="tokens")})
    with pytest.raises(UserError, match=r"run 'first' cannot be shown over tokens .* has no column 'tokens'"):
        table(copy, "kl", "s", x="tokens", runs=["first"])
    with pytest.raises(UserError, match=r"run 'then' cannot be shown over tokens .*results/train/first-"):
        table(copy, "kl", "s", x="tokens", runs=["then"])
    (copy[1] / step.directory / "questions.parquet").unlink()
    with pytest.raises(UserError, match=r"results/train/first.*/questions\.parquet"):
        table(copy, "kl", "s", x="flops", runs=["then"])
    synthetic.finish(step, copy[1], {"log.parquet": log[log["step"] < 30]})
    with pytest.raises(UserError, match=r"run 'first' cannot be shown over tokens .* ends before step"):
        table(copy, "kl", "s", x="tokens", runs=["first"])
    synthetic.finish(step, copy[1], {"log.parquet": log.assign(questions=np.nan)})
    with pytest.raises(UserError, match="without a number of questions"):
        table(copy, "kl", "s", x="questions", runs=["first"])


def test_seeds_are_paired_by_checkpoint_where_their_counts_differ(three_seeds):
    """Each seed trains on other questions, so on other numbers of tokens: x is their mean, and a point is a point."""
    frame = table(three_seeds, "kl", x="tokens", runs=["sft_3ep"])
    assert frame.groupby("step")["x"].nunique().eq(1).all()
    logs = [parquet(three_seeds, "train", "sft_3ep", "log.parquet", seed=seed)["tokens"].sum() for seed in SEEDS]
    assert len(set(logs)) == 3 and frame["x"].max() == pytest.approx(np.mean(logs))
    assert (
        len(draw(three_seeds, "kl", x="tokens", runs=["sft_3ep"]).axes[0].lines[0].get_xdata()) == synthetic.CHECKPOINTS
    )


def test_checkpoints_are_compared_with_the_start_where_asked(chain):
    assert set(table(chain, "start", "s")["run"]) == {"then"}
    figure = draw(chain, "start", "s")
    assert "started from" in figure.get_suptitle() and figure.axes[0].get_ylabel().startswith("KL(start")
    with pytest.raises(UserError, match="none of first is compared with 'start'"):
        table(chain, "kl", "s", reference="start", runs=["first"])
    assert table(chain, "norms", "s")["published"].isna().all()


# ---------------------------------------------------------------- an exhibit of the user's own

MY_FIGURE = '''"""Mean KL of each run."""

READS = ("kl",)


def table(results, options):
    return results.placed(results.kl(), options.x)


def draw(frame, options, style):
    figure = style.figure(4, 3, "Mine")
    axes = figure.subplots()
    style.lines(axes, frame, "kl", "kl_stderr")
    style.legend(axes)
    return figure
'''
MY_TABLE = '''"""Questions asked by each run."""

READS = ("train",)


def table(results, options):
    return results.log(["questions"]).groupby("run", sort=False, as_index=False)["questions"].sum()
'''


@pytest.fixture
def mine(tmp_path):
    """A working directory with a figure and a table of the user's own in it, and two lines each in the study."""
    (tmp_path / "my_figure.py").write_text(MY_FIGURE)
    (tmp_path / "my_table.py").write_text(MY_TABLE)
    own = {"mine": {"kind": "my_figure.py", "runs": ["grpo"]}, "asked": {"kind": "my_table.py"}}
    workflow = synthetic.workflow_with(tmp_path, synthetic.study_file() | {"exhibits": own})
    return world(tmp_path, workflow=workflow)


def test_a_user_s_own_figure_and_table(mine):
    files = {file.name for name in ("mine", "asked") for file in make(mine, name)}
    assert files == {"mine.pdf", "mine.png", "mine.svg", "mine.csv", "asked.csv"}
    asked = pd.read_csv(mine[1] / "results" / "tables" / STUDY / "asked.csv", skiprows=1)
    assert dict(zip(asked["run"], asked["questions"], strict=True))["grpo"] == 8 * 100


def test_an_edited_file_of_the_user_s_is_another_exhibit(mine):
    plan, root = mine
    make(mine, "mine")
    (root / "my_figure.py").write_text(MY_FIGURE.replace('"Mine"', '"Yours"'))
    after = synthetic.plan_of(root, {}, root / "workflow")
    changed = {name for (_, name), d in after.drawings.items() if d.digest != plan.drawings[STUDY, name].digest}
    assert changed == {"mine", "report"}
    with pytest.raises(UserError, match="has changed since"):
        render(root / plan.drawings[STUDY, "mine"].recipe_path)
    make((after, root), "mine")
    assert after.is_current(after.drawings[STUDY, "mine"]) and not plan.is_current(plan.drawings[STUDY, "mine"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("READS = ('kl',)\n", "must define READS, a tuple of stages, and table"),
        ("READS = ('kls',)\ndef table(results, options): ...\n", "READS names 'kls'; did you mean 'kl'"),
        ("import nothing_of_this_name\n", "cannot be imported"),
    ],
)
def test_a_user_s_file_that_is_no_exhibit_is_named(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=r"mine\.py") as error:
        exhibits.find("mine.py", tmp_path, "study.yaml: exhibits.mine")
    assert sentence in str(error.value)


def test_an_empty_table_is_said(mine):
    _, root = mine
    (root / "my_table.py").write_text(MY_TABLE.replace(".sum()", ".sum().head(0)"))
    after = synthetic.plan_of(root, {}, root / "workflow")
    with pytest.raises(UserError, match="asked: there is nothing to show"):
        make((after, root), "asked")


# ---------------------------------------------------------------- degenerate results


def nothing_changed(stage, run, frame):
    for column in ("relative", "change_norm", "kl", "kl_solution"):
        if column in frame:
            frame[column] = 0.0
    return frame


def all_equal(stage, run, frame):
    for column in ("value", "loss", "grad_norm", "accuracy_reward", "format_reward"):
        if column in frame:
            frame[column] = 1.0
    return frame.assign(stderr=0.0) if "stderr" in frame else frame


def one_checkpoint(stage, run, frame):
    if "step" not in frame:
        return frame
    return frame[frame["step"] == frame["step"].max()] if stage != "train" else frame[frame["step"] == 1]


def one_question(stage, run, frame):
    if "question" in frame:
        frame = frame[frame["question"] == 0]
    return frame.assign(questions=1, stderr=np.nan) if "stderr" in frame else frame


def nan_scores(stage, run, frame):
    for column in ("value", "stderr", "kl", "loss", "accuracy_reward"):
        if column in frame:
            frame[column] = np.nan
    return frame


DEGENERATE = [nothing_changed, all_equal, one_checkpoint, one_question, nan_scores]


@pytest.mark.parametrize("edit", DEGENERATE, ids=lambda edit: edit.__name__)
def test_degenerate_results_are_shown(tmp_path, edit):
    """Whatever was measured, there is a figure of it."""
    study = synthetic.study_file()
    small = {"dpi": 50, "width_inches": 5, "height_inches": 4}
    study["exhibits"] = {name: raw | small for name, raw in study["exhibits"].items() if name != "norms_sft"}
    made = world(tmp_path, {"overrides": {"seeds": [1, 2]}}, edit, synthetic.workflow_with(tmp_path, study))
    for name in study["exhibits"]:
        frame = table(made, name)
        assert len(frame)
        if name not in TABLES:
            draw(made, name)
            if name in ("kl", "sft_loss"):
                draw(made, name, log_y=True)


def test_tables_carry_the_published_numbers_they_show():
    """In their recipes: another file of numbers is another table."""
    plan = synthetic.plan_of(Path("."))
    numbers = published.read(synthetic.WORKFLOW / "published" / f"{STUDY}.yaml")
    parts = {"scores": {"benchmarks", "questions"}, "kl_final": {"kl"}, "norms": {"weight_change"}}
    for name, sections in parts.items():
        assert plan.drawings[STUDY, name].recipe["published"] == {part: numbers[part] for part in sections}
    assert "published" not in plan.drawings[STUDY, "benchmarks"].recipe
