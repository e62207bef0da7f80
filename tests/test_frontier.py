"""The frontier: gain and loss against plain arithmetic on the files, and what cannot be shown."""

import math

import numpy as np
import pytest

from scalpel.errors import UserError
from tests.test_exhibits import SEEDS, draw, parquet, plain_scores, table, three_seeds  # noqa: F401 (a fixture)

KEPT = ("mmlu", "mmlu_pro", "ifeval_prompt")  # of the laptop's tasks


def question_scores(made, run: str, seed: int, task: str, step: int) -> np.ndarray:
    """Mean score of each question, by its number."""
    frame = parquet(made, "evaluate", run, "samples.parquet", seed=seed)
    name, _, level = task.partition("_") if task.startswith("ifeval") else (task, "", "")
    metric = {"prompt": "prompt_level_strict_acc", "": "acc"}[level]
    frame = frame[(frame["task"] == name) & (frame["metric"] == metric) & (frame["step"] == step)]
    return frame.groupby("question")["score"].mean().sort_index().to_numpy()


def test_gain_and_loss_are_paired_differences_from_the_base_model(three_seeds):  # noqa: F811
    frame = table(three_seeds, "frontier").set_index(["run", "seed", "step"])
    base = plain_scores(three_seeds, "base", 0)["value"]
    for (run, seed, step), row in frame.iterrows():
        mine = plain_scores(three_seeds, run, seed)["value"]
        assert row["gain"] == pytest.approx(mine[step, "math_500"] - base[0, "math_500"])
        assert row["loss"] == pytest.approx(-np.mean([mine[step, task] - base[0, task] for task in KEPT]))
    for run, seed, step in [("grpo", SEEDS[0], 100), ("sft_3ep", SEEDS[1], 13), ("sft_matched", SEEDS[2], 50)]:
        errors = []
        for task in KEPT:
            new, old = (question_scores(three_seeds, r, s, task, n) for r, s, n in ((run, seed, step), ("base", 0, 0)))
            errors.append(error_of_mean(task, new - old))
        expected = math.sqrt(sum(error**2 for error in errors)) / len(errors)
        assert frame.loc[run, seed, step]["loss_stderr"] == pytest.approx(expected)


def error_of_mean(task: str, differences: np.ndarray) -> float:
    """Of the mean over questions; MMLU's is one over subjects (tests/synthetic.py says which question is whose)."""
    question = np.arange(len(differences))
    subject = question % 3 + question % 2 if task == "mmlu" else 0 * question
    parts = [differences[subject == name] for name in np.unique(subject)]
    return math.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)) / len(parts)


def test_the_whisker_is_of_the_mean_over_seeds(three_seeds):  # noqa: F811
    """Over questions, whose differences are first averaged over seeds, and over seeds."""
    frame = table(three_seeds, "frontier")
    last = frame[(frame["run"] == "grpo") & (frame["step"] == 100)]
    assert last["gain_mean_stderr"].nunique() == 1
    base = question_scores(three_seeds, "base", 0, "math_500", 0)
    mine = np.mean([question_scores(three_seeds, "grpo", seed, "math_500", 100) for seed in SEEDS], axis=0)
    of_questions = (mine - base).var(ddof=1) / len(base)
    expected = math.sqrt(of_questions + last["gain"].var(ddof=1) / len(SEEDS))
    assert last["gain_mean_stderr"].iloc[0] == pytest.approx(expected)
    whiskers = draw(three_seeds, "frontier").axes[0].containers[0].lines[2]
    low, high = whiskers[1].get_segments()[0][:, 1]
    assert high - low == pytest.approx(200 * expected)


def test_a_path_for_each_run_from_the_base_model(three_seeds):  # noqa: F811
    figure = draw(three_seeds, "frontier")
    axes = figure.axes[0]
    paths = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(paths) == 6 and all(line.get_xdata()[0] == line.get_ydata()[0] == 0 for line in paths)
    frame = table(three_seeds, "frontier")
    last = frame[(frame["run"] == "grpo") & (frame["step"] == 100)]
    assert paths[0].get_ydata()[-1] == pytest.approx(100 * last["gain"].mean())
    assert paths[0].get_xdata()[-1] == pytest.approx(100 * last["loss"].mean())


def test_what_cannot_be_shown_is_said(three_seeds):  # noqa: F811
    with pytest.raises(UserError, match="names none of the tasks asked, which are math_500"):
        table(three_seeds, "frontier", kept=("nothing",))
    with pytest.raises(UserError, match="against the base model"):
        table(three_seeds, "frontier", runs=("grpo",))
