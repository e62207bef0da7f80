"""Verifiable rewards: accuracy by math-verify, format by the system prompt's tags (paper appendix B.2)."""

from __future__ import annotations

import re

from scalpel.data.answers import Grader

FORMAT = re.compile(r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>", re.DOTALL)


def accuracy(grader: Grader, gold: list[str], completions: list[str]) -> list[float | None]:
    """1.0 for a right answer, 0.0 for a wrong one, None where the gold answer cannot be parsed."""
    verdicts = grader.grade_many(list(zip(gold, completions, strict=True)))
    return [None if verdict is None else float(verdict) for verdict in verdicts]


def well_formed(completions: list[str]) -> list[float]:
    """1.0 when the whole completion is <think>...</think> then <answer>...</answer>, each tag on its own line."""
    return [float(FORMAT.fullmatch(completion) is not None) for completion in completions]
