"""Verifiable rewards: accuracy and format (paper appendix B.2), by the recipe's answer_rule (scalpel/grading).

The third of open-r1's, the count of tags, is scalpel/grading/text.py's `tag_count`: it needs no rule and no child.
"""

from __future__ import annotations

from scalpel.grading.grader import Grader


def accuracy(grader: Grader, gold: list[str], completions: list[str]) -> list[float | None]:
    """1.0 for a right answer, 0.0 for a wrong one, None where the gold answer cannot be read."""
    verdicts = grader.grade_many(list(zip(gold, completions, strict=True)))
    return [None if verdict is None else float(verdict) for verdict in verdicts]


def well_formed(grader: Grader, completions: list[str]) -> list[float]:
    """1.0 when the whole completion is <think>...</think> then <answer>...</answer>, each tag on its own line."""
    return [float(verdict) for verdict in grader.form_many(completions)]
