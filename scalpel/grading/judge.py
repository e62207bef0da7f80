"""Whether a completion's answer is the gold answer: the rules by name. It runs in a bounded child (children.py).

``strict`` is the rule of scalpel/grading/text.py and reading.py. ``authors`` is accuracy_reward of open-r1
(huggingface/open-r1 @ 1416fa0, which the paper's training code forked): math-verify finds LaTeX, boxed first, anywhere
in the whole completion, thinking included; ``<answer>12</answer>`` holds none."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scalpel.grading.reading import Reading, read_gold, readings, same
from scalpel.grading.text import answer_part, last_boxed, well_formed, well_formed_by_authors

if TYPE_CHECKING:
    from math_verify import LatexExtractionConfig

LONGEST = 10_000  # characters of a gold answer
ROUNDING = 12  # digits to which math-verify compares what it can only evaluate


def strict(gold: str, completion: str) -> bool | None:
    """True or False; None when the gold answer cannot be read."""
    wanted = _gold(gold)
    if wanted is None:
        return None
    part = answer_part(completion)
    return part is not None and any(same(wanted, answer, equal) for answer in readings(part))


@functools.lru_cache(maxsize=1024)
def _gold(text: str) -> Reading | None:
    text = last_boxed(text) or text
    return read_gold(text) if len(text) <= LONGEST else None


def equal(gold: str, answer: str) -> bool:
    """Whether two LaTeX expressions are equal, by math-verify."""
    from math_verify import verify

    one, other = _parsed(gold), _parsed(answer)
    if not (one and other and verify(one, other, float_rounding=ROUNDING, timeout_seconds=None)):
        return False
    return not _small_and_apart(one[0], other[0])


def _small_and_apart(one: Any, other: Any) -> bool:
    """Whether two numbers differ by more than rounding does: math-verify rounds to so many places after the point."""
    from sympy import Expr

    if not all(isinstance(side, Expr) and side.is_number and side.is_finite for side in (one, other)):
        return False
    a, b = (side.evalf(2 * ROUNDING) for side in (one, other))
    return bool(abs(a - b) > max(abs(a), abs(b)) / 10**ROUNDING)


def _parsed(latex: str) -> list:
    """The SymPy expression of a LaTeX one, its decimals as fractions."""
    from math_verify import parse

    latex = re.sub(r"(\d*)\.(\d+)", _as_fraction, latex)
    return parse(f"${latex}$", [_latex()], fallback_mode="no_fallback", parsing_timeout=None)


def _as_fraction(match: re.Match) -> str:
    return rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}"


@functools.cache
def _latex() -> LatexExtractionConfig:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    # Units are put aside by reading.py; math-verify takes m, h, t, ab and so on for some wherever they end a formula.
    kept = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    return LatexExtractionConfig(normalization_config=kept)


def exact(gold: str, completion: str) -> bool:
    """Whether a completion's answer is the gold answer as text."""
    part = answer_part(completion)
    return part is not None and plain(part.text) == plain(gold)


def plain(text: str) -> str:
    """A text without letter case, runs of blanks and the punctuation around it, a sign or bracket aside."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*$")


def authors(gold: str, completion: str) -> bool | None:
    """As open-r1's accuracy_reward, None when math-verify finds nothing in the gold text."""
    from math_verify import parse, verify

    if not gold.strip():
        return None
    gold = last_boxed(gold) or gold
    boxed = parse(f"$\\boxed{{{gold}}}$", extraction_mode="first_match", parsing_timeout=None)
    wanted = boxed or parse(gold, extraction_mode="first_match", parsing_timeout=None)
    if not wanted:
        return None
    found = parse(completion, [_authors_latex()], extraction_mode="first_match", parsing_timeout=None)
    return bool(verify(wanted, found, timeout_seconds=None))


@functools.cache
def _authors_latex() -> LatexExtractionConfig:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    return LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            nits=False, malformed_operators=False, basic_latex=True, equations=True, boxed="all", units=True
        ),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )


RULES: dict[str, Callable[[str, str], bool | None]] = {"strict": strict, "authors": authors}
ASKED: dict[str, Callable] = RULES | {  # of a Grader
    "strict form": well_formed,
    "authors form": well_formed_by_authors,
}


def warm() -> None:
    """Import and compile all that grading needs, so that no completion's time is spent on it."""
    for rule in RULES.values():
        rule("12", r"$\boxed{12}$")
        rule(r"\sqrt{2}", r"$\boxed{\frac{2}{\sqrt{2}}}$")
