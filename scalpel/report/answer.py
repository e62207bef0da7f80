"""The first lines of the page: the study's question, and what its last checkpoints say to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scalpel.claims import judge
from scalpel.claims.estimate import Estimate, Lacking
from scalpel.claims.judge import Evidence
from scalpel.claims.measures import gap
from scalpel.config.types import BASE
from scalpel.exhibits.results import task_name
from scalpel.report.tables import NONE, Table

SIDES = ("gain", "kept")
SHOWN = 3  # runs, where the study names none


class Answer(NamedTuple):
    """question: "" where the study asks none. sentences: may be none. picture: the exhibit that shows them, or None."""

    question: str
    sentences: list[str]
    picture: str | None


def answer(
    asked: dict, exhibits: dict[str, dict], evidence: Evidence, trained: Sequence[str],
    label: Callable[[str], str] = str, equal: Table | None = None, bugs: Table | None = None,
) -> Answer:  # fmt: skip
    """asked: the study's `answer` (scalpel/config/study.py). exhibits: name -> recipe. trained: the study's runs.
    equal, bugs: the tables of equal budgets and of bugs that it names."""
    picture = asked["picture"] or next((name for name in exhibits if exhibits[name]["kind"] == "frontier"), None)
    options = exhibits[picture]["options"] if picture else {}
    if "gain" not in options or "kept" not in options:
        return Answer(asked["question"], [], picture)
    scales = Scales(evidence, options["gain"], options["kept"], label)
    runs = [run for run in asked["runs"] or trained[:SHOWN] if scales.has(run)]
    sentences = [scales.changes(runs)] if runs else []
    if runs and scales.has(asked["control"]):
        sentences.append(scales.compared(asked["control"], runs[0]))
    if equal is not None:
        sentences += at_equal_budgets(equal)
    if bugs is not None:
        sentences += with_bugs(bugs)
    return Answer(asked["question"], sentences, picture)


def at_equal_budgets(table: Table) -> list[str]:
    """A paragraph for each unit, and in it, of each budget: who gains most, and how many runs gain and keep more, or
    less, than the first one beyond their 95% intervals. The table is that of scalpel/exhibits/equal_budget.py."""
    paragraphs: dict[str, list[str]] = {}
    for (budget, whose), group in itertools.groupby(_rows(table), key=lambda row: (row["budget"], row["whose"])):
        rows = list(group)
        there = [row for row in rows if _has(row["gain"])]
        if len(there) < 2:
            continue
        most = max(there, key=lambda row: _value(row["gain"]))
        text = f"Within {budget}, what {whose} spent in all, {most['run']} gains most, {_page(most['gain'])} points"
        if _has(most["gain − whose"]):
            owner = next((row["run"] for row in there if whose.startswith(row["run"])), whose)
            text += f" ({_page(most['gain − whose'])} more than {owner})"
        if not _has(rows[0]["gain"]):
            text += f"; {rows[0]['run']} has no checkpoint to compare ({rows[0]['step']})."
        else:
            signs = {name: [_sign(row[f"{name} − first"]) for row in there if row is not rows[0]] for name in SIDES}
            more, less, kept, lost = (signs[name].count(sign) for name in SIDES for sign in (1, -1))
            text += f"; of {len(there) - 1} others {more} gain more than {rows[0]['run']} and {less} less, {kept} "
            text += f"keep more and {lost} less (intervals without 0)."
        paragraphs.setdefault(budget.split()[-1], []).append(text)
    return [" ".join(texts) for texts in paragraphs.values()]


def with_bugs(table: Table) -> list[str]:
    """One sentence: each run without bugs minus the best mixed-policy method, the same with bugs, least and most, and
    how many of them would have changed on which side of 0 its interval lies, if on any. The table is that of
    scalpel/exhibits/bug_effect.py."""
    families: list[list[dict[str, str]]] = []
    for row in _rows(table):
        if row["gain − without bugs"] == NONE:
            families.append([])
        families[-1].append(row)
    parts, other, count, best = [], 0, 0, ""
    for right, *faulty in families:
        known = sorted((row for row in faulty if _has(row["gain − best"])), key=lambda row: _value(row["gain − best"]))
        if not known or not _has(right["gain − best"]):
            continue
        ends = " to ".join(f"{_page(row['gain − best'])} ({row['run']})" for row in (known[0], *known[1:][-1:]))
        best, count = right["best"], count + len(known)
        other += sum(_sign(row["gain − best"]) != _sign(right["gain − best"]) for row in known)
        parts.append(f"of {right['run']} it is {_page(right['gain − best'])} without bugs and {ends} with them")
    if not parts:
        return []
    return [
        f"What bugs of SFT do to the difference to the mixed-policy method that gains most ({best}), in points: "
        f"{'; '.join(parts)}. With {other} of {count} of these bugs the verdict would have been another (more, less or "
        "undecided)."
    ]


def _value(text: str) -> float:
    return float(text.split()[0])


def _rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip((column.name for column in table.columns), row, strict=True)) for row in table.rows]


def _has(cell: str) -> bool:
    """Whether it is a difference, and no reason why there is none."""
    return cell[:1] in ("+", "-")


def _sign(text: str) -> int:
    """Of a difference ``+1.2 [-3.4, +5.8]``: 0 where its interval holds 0, or it has none."""
    low, high = (
        (float(bound) for bound in text.partition("[")[2].rstrip("]").split(",")) if "[" in text else (-1.0, 1.0)
    )
    return (low > 0) - (high < 0)


def compared(asked: dict, trained: Sequence[str]) -> list[str]:
    """The runs that the answer is about, its control the last one."""
    return [*(asked["runs"] or trained[:SHOWN]), *filter(None, [asked["control"]])]


class Scales:
    """Gain on what was trained and change of what was known: means over tasks, differences of paired questions."""

    def __init__(self, evidence: Evidence, gain: Sequence[str], kept: Sequence[str], label: Callable[[str], str]):
        self.evidence, self.tasks, self.label = evidence, (gain, kept), label

    def has(self, run: str | None) -> bool:
        """Whether both can be had of a run."""
        try:
            return run is not None and all(self.gap(run, BASE, kept).known for kept in (False, True))
        except Lacking:
            return False

    def gap(self, a: str, b: str, kept: bool) -> Estimate:
        return gap(self.evidence, a, b, self.tasks[kept])[0]

    def named(self, run: str, kept: bool) -> str:
        """The tasks of one side, in words."""
        of = [task_name(task).partition(", ") for task in gap(self.evidence, run, BASE, self.tasks[kept])[1]]
        names = [f"{name} ({part})" if part else name for name, _, part in of]
        whole = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        return f"the mean of {whole}" if len(names) > 1 else whole

    def changes(self, runs: Sequence[str]) -> str:
        """What each run did to both."""
        first, *others = runs
        text = (
            f"From the base model to its last checkpoint, {self.label(first)} changes {self.named(first, False)} by "
            f"{interval(self.gap(first, BASE, False))} points and {self.named(first, True)} by "
            f"{interval(self.gap(first, BASE, True))}"
        )
        for run in others:
            text += f"; {self.label(run)} by {interval(self.gap(run, BASE, False))} and "
            text += interval(self.gap(run, BASE, True))
        return f"{text}."

    def compared(self, control: str, run: str) -> str:
        """The control, and whether it keeps less than the run."""
        found = self.gap(run, control, True)
        low, high = found.value - found.half_width(), found.value + found.half_width()
        name, other = self.label(control), self.label(run)
        if low > 0:
            said = f"{other} still keeps more of the latter"
        elif high < 0:
            said = f"it keeps more of the latter than {other}"
        else:
            said = f"whether it or {other} keeps more of the latter is undecided"
        return (
            f"The control ({name}) changes them by {interval(self.gap(control, BASE, False))} and "
            f"{interval(self.gap(control, BASE, True))}: {said} ({other} minus control: {interval(found)})."
        )


def interval(found: Estimate) -> str:
    return _page(judge.interval(found))


def _page(text: str) -> str:
    """As on a page: with minus signs, never broken."""
    return text.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")
