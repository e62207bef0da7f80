"""Answer checking: what counts as right, limits that hold, and agreement with a published evaluator's scores."""

import json
import os
import signal
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest

from scalpel.grading import text
from scalpel.grading.children import Children, Exceeded, Raised
from scalpel.grading.grader import Grader
from scalpel.grading.text import tag_count
from scalpel.methods import rewards
from tests.hostile import corpus


@pytest.fixture(scope="module")
def grader():
    with Grader() as grader:
        yield grader


RIGHT = [
    ("12", r"so \boxed{12}"),
    ("12", "<answer>12</answer>"),
    ("12", "$12$"),
    ("12", "12"),
    ("12", "<think>\n3 + 9 = 12\n</think>\n<answer>\n12\n</answer>"),
    ("12", "<think>\n13\n</think>\nSo it is 12."),
    ("12", r"first \boxed{5}, no: <answer>12</answer>"),
    ("12", r"\boxed{13} no, \boxed{12}"),
    ("12", "<answer>13</answer> no: <answer>12</answer>"),
    ("12", r"$5$, then $7$, so \boxed{12}"),
    ("12", r"\boxed{x = 12}"),
    ("12", r"\boxed{3 + 9 = 12}"),
    ("12", r"\boxed{12 \text{ apples}}"),
    ("12", "The final answer is 12. I hope it is correct."),
    ("12", "So Tom has 12 apples left."),
    ("12", "3 + 9 = 12\n#### 12"),
    ("12", r"Therefore $x + 3 = 15$, so $x = 12$."),
    ("1000", r"\boxed{1,000}"),
    (r"\frac12", r"\boxed{0.5}"),
    (r"12\%", r"\boxed{12\%}"),
    ("11, 12", r"\boxed{12}, \boxed{11}"),
    (r"(3,\frac{\pi}{2})", r"\boxed{\left( 3, \frac{\pi}{2} \right)}"),
    (r"2\sqrt{3}+1", r"\boxed{1 + 2\sqrt3}"),
    ("C", r"\boxed{C}"),
    ("C", "Because of this.\nAnswer: C"),
    (r"\text{even}", r"\boxed{even}"),
    ("9^{9^{9}}", r"\boxed{9^{9^9}}"),
]


RIGHT_TOO = [  # as models and data sets write them
    ("D", "The field vanishes.\n\nAnswer: D"),
    ("D", "v = 3 m/s\n\nAnswer: D"),
    ("D", "So T ≈ 300 K\nAnswer: D"),
    ("D", "3.2\nAnswer: D"),
    ("7", "\\[ x = 7 \\]\n\nThe final answer is 7."),
    ("7", "2x = 14\nThe answer is 7."),
    ("7", "x = 7\n\n**Answer: 7**"),
    ("7", "\\[n = 7\\]\n\nTherefore, Hillary has 7 nickels."),
    ("7", "3x = 21\n\nTherefore, Hillary has 7 nickels."),
    ("①③④", "\\boxed{①③④}"),
    ("x⁴", "\\boxed{x^4}"),
    ("x⁴", "\\boxed{x⁴}"),
    ("\\mathbb{R}", "\\boxed{ℝ}"),
    ("D", "CO₂ is released.\n\nAnswer: D"),
    ("D", "The rate is 3 s⁻¹.\n\nAnswer: D"),
    ("12", "Hmm… The answer is 12."),
    ("12", "x⁴ = 16, so the answer is 12."),
    ("9", "The terms a₁ and aₙ.\nSo the number of divisors of 196 is 9."),
    ("2ab", "\\boxed{2ba}"),
    ("5", "\\boxed{5 cm}"),
    ("5 cm", "\\boxed{5}"),
    ("3 m", "\\boxed{3}"),
    ("3", "so $x\\equiv \\boxed{3} \\pmod{7}$"),
    ("32348", "$\\approx \\boxed{\\$32,\\!348}$"),
    ("30", "$\\angle A=\\boxed{30}^\\circ$"),
    ("5.77", "$x\\approx\\boxed{5.77}$"),
    ("11,12", "\\boxed{11}, \\quad \\boxed{12}"),
    ("11,12", "$x=\\boxed{11}$ or $x=\\boxed{12}$"),
    ("D", "Answer: D) 3 m/s"),
    ("D", "Answer: (D) 3 m/s"),
    ("D", "The correct answer is (D) 3 m/s."),
    ("D", "\\boxed{D. 12}"),
    ("D", "\\boxed{\\text{(D)}\\ 12}"),
    ("D", "**Answer: D. zero**"),
    ("\\log_2 3", "\\boxed{\\log_{2}3}"),
    ("\\{-1,0,1\\}", "\\boxed{\\{0,-1,1\\}}"),
    ("x-y+1=0", "\\boxed{x-y=-1}"),
    ("2x-y+3=0", "\\boxed{y=2x+3}"),
    ("y=2x+3", "\\boxed{2x-y+3=0}"),
    ("\\pm 2", "\\boxed{2,-2}"),
    ("\\pm 2", "\\boxed{-2,2}"),
    ("2,-2", "\\boxed{\\pm 2}"),
    ("2", "Therefore, the greatest number he could have left over is 2."),
    ("12", "If x is 3, the answer is 12."),
    ("225", "She needs 200+25=225 pounds of potato salad."),
    ("m=2,n=3", "\\boxed{m=2,n=3}"),
    ("m=2,n=3", "\\boxed{n=3,m=2}"),
    ("m=2,n=3", "\\boxed{2,3}"),
    ("x=1,y=2", "\\boxed{1,2}"),
    ("f'(x)=2x", "\\boxed{f'(x)=2x}"),
    ("x=2,x=-2", "\\boxed{-2,2}"),
    ("3-5t", "\\boxed{-5t+3}"),
    ("\\{1,2\\}", "\\boxed{2,1}"),
    ("(1,2)", "\\boxed{(1,2)}"),
]

WRONG = [  # near to what is right
    ("\\frac{1}{3}\\pi r^2h", "\\boxed{\\frac{1}{3}\\pi r^2}"),
    ("x^2+3ab", "\\boxed{x^2+3}"),
    ("2ab", "\\boxed{2}"),
    ("6t", "\\boxed{6}"),
    ("5-3t", "\\boxed{5-3}"),
    ("3m", "\\boxed{3g}"),
    ("f'(2)", "\\boxed{f(2)}"),
    ("a+1", "\\boxed{(a+1) m}"),
    ("\\frac{1}{2^{2019}}", "\\boxed{\\frac{1}{2^{2020}}}"),
    ("\\frac{1}{2^{99}}", "\\boxed{\\frac{1}{2^{98}}}"),
    ("\\frac{3}{4^{40}}", "\\boxed{\\frac{5}{4^{40}}}"),
    ("\\frac{1}{20!}", "\\boxed{\\frac{1}{21!}}"),
    ("12", "\\boxed{11}, \\quad \\boxed{12}"),
    ("12", "$x=\\boxed{11}$ or $x=\\boxed{12}$"),
    ("m=2,n=3", "\\boxed{3,2}"),
    ("2,1", "\\boxed{x=1,y=2}"),
    ("5\\text{ m}^2", "\\boxed{5\\text{ m}^3}"),
    ("2", "\\boxed{\\pm 2}"),
    ("12", "It is not the case that x is 12."),
    ("12", "If the total is 12."),
    ("12", "x could be 12."),
    ("12", "Could it be that the answer is 12?"),
    ("12", "12 to 13"),
    ("13", "12\n13"),
    ("12", "The answer is 13.\n12 or 13"),
    ("13", "x = 12\nx = 13"),
    ("D", "A. 12 or D. 13"),
    ("D", "\\boxed{A. 12 or D. 13}"),
    ("D", "It is not D) 3"),
    ("12", "\u200b1\u200b2"),
    ("12", "１２"),
    ("\\{1,2\\}", "\\boxed{(1,2)}"),
    ("x=5", "\\boxed{2x=10}"),
    ("12", "He paid 11 of 12."),
    ("12", "He paid about $12."),
    ("12", "2 \\boxed{6}"),
    ("12", "It must be more than 12."),
    ("64", "So Kylar needs to pay $64 thousand."),
    ("12", "The answer is either 12."),
    ("2x-y+3=0", "\\boxed{y=2x-3}"),
]


def test_right_answers_are_right(grader):
    pairs = RIGHT + RIGHT_TOO
    verdicts = grader.grade_many(pairs)
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is not True] == []


def test_what_is_near_is_wrong(grader):
    verdicts = grader.grade_many(WRONG)
    assert [pair for pair, verdict in zip(WRONG, verdicts, strict=True) if verdict] == []


def test_without_a_gold_answer_there_is_no_verdict(grader):
    assert grader.grade_many([("", "12"), ("  ", "12"), ("12", "")]) == [None, None, False]
    assert [
        verdict in (True, False, None) for verdict in grader.grade_many([(text, "1") for _, _, text in corpus()[:50]])
    ]


@pytest.mark.slow
def test_no_hostile_completion_is_right():
    """And all of them together take bounded time: 12 of them exceed theirs, the rest take milliseconds."""
    items = corpus()
    kinds = Counter(kind for kind, _, _ in items)
    print(f"{len(items)} hostile completions: {dict(kinds)}")
    assert len(items) >= 300 and min(kinds.values()) >= 30
    with Grader(seconds=1.0) as grader:
        verdicts = grader.grade_many([(gold, completion) for _, gold, completion in items])
    wrong = [(kind, gold, completion[:80]) for (kind, gold, completion), v in zip(items, verdicts, strict=True) if v]
    assert wrong == []


def test_the_form_of_hostile_completions_takes_linear_time(grader):
    started = time.process_time()
    for _, _, completion in corpus():
        text.well_formed(completion)
        text.well_formed_by_authors(completion)
        text.last_boxed(completion)
    assert time.process_time() - started < 20


# ---------------------------------------------------------------- limits


def test_a_pair_without_end_costs_itself_alone():
    slow = r"\boxed{((9!)!)!}"
    with Grader(seconds=0.5, children=2) as grader:
        assert grader.grade_many([("2", r"\boxed{2}"), ("2", slow), ("2", r"\boxed{3}"), ("2", r"\boxed{2}")]) == [
            True, False, False, True,
        ]  # fmt: skip


def test_a_flood_of_a_batch_is_bounded(grader):
    """64 completions that each take all their time: 2 n x seconds / children, and what starting children takes."""
    pairs = [("12", r"\boxed{((9!)!)!}")] * 62 + [("12", "12")] * 2
    with Grader(seconds=0.2, children=2) as grader:
        grader.grade("1", "1")
        started = time.monotonic()
        assert grader.grade_many(pairs) == [False] * 62 + [True] * 2
        took = time.monotonic() - started
    print(f"64 hostile completions of 0.2 s each in two children: {took:.1f} s")
    assert took < 2 * 64 * 0.2 / 2 * 6  # other work on these cores


def test_time_is_the_processors():
    """A child that waits is not ended by its limit of time."""

    def work(seconds):
        time.sleep(seconds)
        return seconds

    with Children(work, seconds=0.1, count=2) as children:
        assert children.each([0.5, 0.6]) == [0.5, 0.6]


def test_what_others_left_behind_fails_no_item():
    """A child whose memory others filled fails; the item is tried again in a fresh one."""
    kept = []

    def work(size):
        kept.append(bytearray(size << 20))
        return len(kept)

    with Children(work, seconds=5.0, memory=300 << 20, count=1) as children:
        assert children.each([100, 90, 200, 1]) == [1, 2, 1, 2]
        found = children.each([5000, 1])
        assert isinstance(found[0], Exceeded) and found[1] == 1


def test_what_raises_or_dies_costs_itself_alone():
    def work(item):
        if item == "raise":
            raise ValueError("no")
        if item == "die":
            os._exit(9)
        if item == "loop":
            while True:
                pass
        return item

    with Children(work, seconds=0.3, count=2) as children:
        found = children.each(["a", "raise", "die", "b", "loop", "c"])
        assert [found[0], found[3], found[5]] == ["a", "b", "c"]
        assert isinstance(found[1], Raised) and str(found[1]) == "ValueError: no"
        assert isinstance(found[2], Exceeded) and isinstance(found[4], Exceeded)


def test_a_process_that_was_killed_costs_no_verdict():
    with Grader() as grader:
        for _ in range(2):
            assert grader.grade("2", "2") is True
            os.kill(grader._process.pid, signal.SIGKILL)
            grader._process.wait()


# ---------------------------------------------------------------- rewards and their form


FORMS = [
    ("<think>\na\n</think>\n<answer>\n12\n</answer>", True, True),
    ("<think>\na\nb\n</think>\n<answer>\n12\n13\n</answer>", True, True),
    ("12", False, False),
    ("<think>\n\n</think>\n<answer>\n12\n</answer>", False, True),
    ("<think>\n \n</think>\n<answer>\n12\n</answer>", False, True),
    ("<think>\na\n</think>\n<answer>\n\n</answer>", False, True),
    ("<think>\na\n</think>\n<answer>\n1\n</answer>\n<answer>\n2\n</answer>", False, True),
    ("<think>\n<think>\na\n</think>\n<answer>\n12\n</answer>", False, True),
    ("<think>\na\n</think>\n<answer>\n12\n</answer> ", False, False),
    (" <think>\na\n</think>\n<answer>\n12\n</answer>", False, False),
    ("<think>\na\n</think>\n\n<answer>\n12\n</answer>", False, False),
]


def test_forms(grader):
    completions = [completion for completion, _, _ in FORMS]
    assert rewards.well_formed(grader, completions) == [float(strict) for _, strict, _ in FORMS]
    with Grader("authors") as authors:
        assert rewards.well_formed(authors, completions) == [float(theirs) for _, _, theirs in FORMS]


def test_rewards(grader):
    completions = ["<think>\na\n</think>\n<answer>\n12\n</answer>", "12", "13"]
    assert rewards.accuracy(grader, ["12"] * 3, completions) == [1.0, 1.0, 0.0]
    assert rewards.accuracy(grader, ["", "12", ""], completions) == [None, 1.0, None]


def test_the_authors_rule_reads_the_thinking_and_latex_alone():
    with Grader("authors") as authors:
        thought = "<think>\n\\boxed{12}\n</think>\n<answer>\nI do not know\n</answer>"
        assert authors.grade_many([("12", thought), ("12", "<answer>12</answer>"), ("12", "12")]) == [
            True, False, False,
        ]  # fmt: skip


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
        agreed += sum(bool(mine) == other for mine, other in zip(verdicts, theirs, strict=True))
        total += len(table)
    assert agreed / total >= 0.96, f"{agreed} of {total}"  # most of the rest break off, or end in no answer


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>\nSo.\n</think>\n<answer>\n3\n</answer>", 1.0),
        ("<think>\nSo.\n</think>\n<answer>\n3\n</answer>\n</think><answer></think>", 1.0),  # hacked: tags after the end
        ("3\n</answer>\n</answer>", 0.0),  # twice
        ("<think>\n\n</think>\n\n<answer>\n\n</answer>", 1.0),  # nothing between them
        ("<think> So. </think> <answer> 3 </answer>", 0.0),  # no line breaks
        ("<think>\nSo. It is 3.", 0.25),
        ("", 0.0),
    ],
)
def test_the_count_of_tags(completion, reward):
    assert tag_count(completion) == reward
