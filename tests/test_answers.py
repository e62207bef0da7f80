"""Answer checking: what counts as right, limits that hold, and agreement with a published evaluator's scores."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scalpel.data.answers import Grader
from scalpel.methods import rewards


@pytest.fixture(scope="module")
def grader():
    with Grader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("gold", "completion", "verdict"),
    [
        ("12", r"so \boxed{12}", True),
        ("12", "<answer>12</answer>", True),  # not found by open-r1's extraction
        ("12", "$12$", True),  # nor this
        ("12", "<think>\n3 + 9 = 12\n</think>\n<answer>\n12\n</answer>", True),
        ("12", r"first \boxed{5}, no: <answer>12</answer>", True),
        ("12", r"<answer>\boxed{13}</answer> after $12$", False),
        ("12", r"$5$, then $7$, so \boxed{12}", True),  # boxed before other LaTeX
        ("12", "<answer></answer>", False),
        ("12", "", False),
        (r"\frac12", r"\boxed{0.5}", True),
        (r"(3,\frac{\pi}{2})", r"\boxed{\left( 3, \frac{\pi}{2} \right)}", True),
        ("C", r"\boxed{C}", True),
        ("C", r"\boxed{D}", False),
        ("", "12", None),
        ("  ", "12", None),
    ],
)
def test_verdicts(grader, gold, completion, verdict):
    assert grader.grade(gold, completion) is verdict


def test_odd_text_never_raises(grader):
    odd = ["\ud800", "\x00", "{" * 5000, "\\boxed{" * 300, "$" * 999, r"\frac{1}{0}", "9" * 9000, "\n\r\u2028", "∞≠½"]
    assert all(verdict in (True, False) for verdict in grader.grade_many([("12", text) for text in odd]))
    assert all(verdict in (True, False, None) for verdict in grader.grade_many([(text, "12") for text in odd]))
    assert grader.grade("12", "12") is True


def test_a_pair_without_end_costs_itself_alone():
    """9^{9^9} has 370 million digits: it ends with the pair's time, and its neighbours are graded all the same."""
    with Grader(seconds=1.0) as grader:
        grader.grade("1", "1")  # the child's start aside
        started = time.monotonic()
        pairs = [("2", r"\boxed{2}"), ("2", r"\boxed{9^{9^9}}"), ("2", r"\boxed{3}"), ("2", r"\boxed{2}")]
        assert grader.grade_many(pairs) == [True, False, False, True]
        assert time.monotonic() - started < 30


def test_memory_is_bounded():
    """2^(2^31) has 256 MiB: more than is allowed, so the pair is wrong, and the child works on."""
    with Grader(seconds=30.0, memory_mib=200) as grader:
        assert grader.grade("2", r"\boxed{2^{2^{31}}}") is False
        assert grader.grade("2", r"\boxed{2}") is True
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{grader._child.pid}/status").read_text())
        assert int(peak[1]) < 200 << 10


def test_text_that_repeats_a_box_without_end_is_quick(grader):
    """What base models write when they do not stop; math-verify alone takes minutes."""
    text = "Let $x$ and $y$ be \\boxed{" + r"}. \boxed{" * 1500
    grader.grade("1", "1")
    started = time.monotonic()
    assert grader.grade("2", text) is False
    assert time.monotonic() - started < 4
    assert grader.grade("2", "words\n" * 4000 + r"so \boxed{2}" + "\nwords" * 4000) is True


def test_a_child_that_was_killed_costs_no_verdict():
    """Whoever killed it, and whenever: the pair it was at is graded by the next child."""
    with Grader() as grader:
        for _ in range(3):
            assert grader.grade("2", "2") is True
            os.kill(grader._child.pid, signal.SIGKILL)
            grader._child.wait()


def test_rewards():
    completions = ["<think>\na\n</think>\n<answer>\n12\n</answer>", "12", "13"]
    with Grader() as grader:
        assert rewards.accuracy(grader, ["12"] * 3, completions) == [1.0, 1.0, 0.0]
        assert rewards.accuracy(grader, ["", "12", ""], completions) == [None, 1.0, None]
    assert rewards.well_formed(completions) == [1.0, 0.0, 0.0]


def test_agrees_with_published_scores(shared_data, grader):
    """Real generations with the verdicts of the Qwen2.5-Math evaluator (SkyThought)."""
    folder = shared_data / "scored_generations_sky"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder}")
    expected = json.loads((folder / "expected_dev.json").read_text())
    agreed = total = 0
    for name, counts in expected.items():
        table = pq.read_table(folder / f"{name}.parquet", columns=["gt", "code", "score"]).to_pylist()
        verdicts = grader.grade_many([(row["gt"], row["code"][0]) for row in table])
        theirs = [bool(row["score"][0]) for row in table]
        assert (len(table), sum(theirs)) == (counts["rows"], counts["score_true"])
        assert all(row["gt"] for row, verdict in zip(table, verdicts, strict=True) if verdict is not None)
        agreed += sum(bool(mine) == other for mine, other in zip(verdicts, theirs, strict=True))
        total += len(table)
    assert agreed / total >= 0.97, f"{agreed} of {total}"  # 693 of 710 when measured; most of the rest have no box
