r"""Which part of a completion is its answer, and whether the completion has the form that was asked for.

The rule, the same for rewards, for own answers and for every maths benchmark:

1. What counts is what follows the thinking: all after the last ``</think>``, the whole where there is none. Thinking
   that is left open has nothing after it.
2. In that the last ``<answer>...</answer>``, where there is one. A tag that is left open, closed twice or put inside
   another holds no answer.
3. In that the last ``\boxed{...}``, where there is one. A box that is left open, that holds a box or that is itself a
   part of a formula is no answer. Boxes with nothing between them but a comma or "or" are one list.
4. Else all of it.

What that part says, and whether it equals the gold answer, is decided in scalpel/grading/reading.py. Everything here
takes time proportional to the length of the text, whatever it holds.
"""

from __future__ import annotations

import re
from typing import NamedTuple

THINK, END_THINK, ANSWER, END_ANSWER = TAGS = ("<think>", "</think>", "<answer>", "</answer>")
NEAR = 80  # characters before and after a box that are looked at
MOST = 32  # boxes of one list

_TAG = re.compile(r"</?answer>")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t\n]*\{|\\(?:boxed|fbox)(?![A-Za-z])")
_LINK = re.compile(  # between two boxes of one list
    r"(?:[\s$,;/&]|\\[()\[\],;]|\\(?:quad|qquad|lor)(?![A-Za-z])|\\text\s*\{|[{}]|\b[A-Za-z](?:_\{?\w+\}?)?\s*="
    r"|\b(?:or|and|either|also|maybe|perhaps|possibly|to)\b)*",
    re.IGNORECASE,
)
_WITHIN = re.compile(  # before a box that is part of something larger: 2\boxed{6}, \sqrt{\boxed{144}}, not \boxed{12}
    r"""(?:
        [-+^_/] | \d | \b[A-Za-z][ ]?[-+*<>][ ]* | [\d})][ ]*[-+*<>/][ ]* | [^\s=-][ ]+[<>][ ]*
        | \\(?:neq?|not[ ]?=?|times|cdot|div|pm|mp|le|ge|leq|geq|sqrt|lnot)[ ]*
        | \\[dt]?frac[ ]*(?:\{[^{}]*\})? | \b(?:not|never|isn't|neither|nor)\s+(?:(?:equal\s+to|be|simply|just)\s+)?
    )[${(\[]*(?:\\[(\[])?$""",
    re.VERBOSE | re.IGNORECASE,
)
_CLOSING = r"[ \t$})\]]*(?:\\[)\]])?[ \t]*"
_BEYOND = re.compile(  # after a box that is part of something larger, or denied
    _CLOSING
    + r"""(?:
        \^(?![ ]*(?:\{[ ]*)?\\circ) | [_!] | [-+*/][ ]*[\d\\({] | [-+/][ ]*[A-Za-z]\b
        | \\(?:times|cdot|div|pm|mp|[dt]?frac|mod|bmod|pmod|neq?|sqrt|pi)(?![A-Za-z])
        | (?:,|;|\\text[ ]?\{\s*(?:or|and)\s*\}|,?[ ]*\b(?:or|and)\b)[ ]*(?:maybe|perhaps|possibly|else|even)?
          [ $({\[]*(?:\\[(\[])?[ ]*-?(?:\d|\\[dt]?frac)
        | (?:is|was|would[ ]be|seems)[ ]+(?:wrong|incorrect|not|false|impossible)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_CONGRUENT = re.compile(r"\\equiv[ ]*$")
_MODULUS = re.compile(r"^\s*\\(?:pmod|bmod|mod)(?![A-Za-z])\s*(?:\{[^{}]*\}|\w+)")
_PERCENT = re.compile(_CLOSING + r"(?:\\?%|per ?cent)", re.IGNORECASE)
_TIMES = re.compile(
    _CLOSING + r"(?:\\(?:text|mathrm|mbox) ?\{)?\s*"
    r"(?:k|M|bn|hundred|thousand|million|billion|trillion|dozen|squared|cubed|halves|thirds)\b"
)


class Part(NamedTuple):
    """What is looked at. boxed: it stood in a box, or in several that form a list."""

    text: str
    boxed: bool


def after_thinking(completion: str) -> str:
    """What follows the last ``</think>``; the whole without one; nothing when thinking is left open."""
    rest = completion.rpartition(END_THINK)[2]
    return "" if THINK in rest else rest


def answer_part(completion: str) -> Part | None:
    """The part of a completion that is its answer; None when it has none."""
    said = _tagged(after_thinking(completion))
    if said is None or not said.strip():
        return None
    found = boxes(said)
    return _boxed(said, found) if found else Part(said, False)


def _tagged(said: str) -> str | None:
    """What stands in the last answer tag, all of it when there is no tag; None when tags are open or nested."""
    tags = list(_TAG.finditer(said))
    if not tags:
        return said
    if len(tags) < 2 or tags[-1].group() != END_ANSWER or tags[-2].group() != ANSWER:
        return None
    if len(tags) > 2 and tags[-3].group() == ANSWER:  # one in another
        return None
    return said[tags[-2].end() : tags[-1].start()]


# ---------------------------------------------------------------- boxes


class Box(NamedTuple):
    """A box's place in a text: where its macro starts, where its content starts and ends. end -1: left open."""

    start: int
    content: int
    end: int
    depth: int  # of how many boxes it stands in


def boxes(text: str) -> list[Box]:
    r"""Every ``\boxed`` and ``\fbox`` of a text, in the order in which they begin.

    Braces after a backslash are text. A box whose braces are not balanced, or without braces, is one left open.
    """
    macros = [(match.start(), match.end() - 1) for match in _BOX.finditer(text)]
    if not macros:
        return []
    starts, ends, depths = [start for start, _ in macros], [-1] * len(macros), [0] * len(macros)
    opened_by = {brace: number for number, (_, brace) in enumerate(macros) if text[brace] == "{"}
    stack: list[int] = []  # of each open brace: the number of the box it opens, or -1
    depth = 0
    for match in _BRACE.finditer(text, starts[0]):
        brace = match.group()
        if brace == "{":
            number = opened_by.get(match.start(), -1)
            stack.append(number)
            if number >= 0:
                depths[number] = depth
                depth += 1
        elif brace == "}" and stack:
            number = stack.pop()
            if number >= 0:
                ends[number] = match.start()
                depth -= 1
    return [Box(start, brace + 1, end, d) for (start, brace), end, d in zip(macros, ends, depths, strict=True)]


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` (or ``\fbox``) whose braces are balanced; None when there is none."""
    closed = [box for box in boxes(text) if box.end >= 0]
    return text[closed[-1].content : closed[-1].end] if closed else None


def _boxed(said: str, found: list[Box]) -> Part | None:
    last = found[-1]
    if last.end < 0 or last.depth:  # left open, or in another box
        return None
    chain = [last]
    for box in reversed(found[-MOST:-1]):
        between = said[box.end + 1 : chain[0].start]
        if box.end < 0 or box.depth or len(between) > NEAR or "\n\n" in between or not _LINK.fullmatch(between):
            break
        chain.insert(0, box)
    before = said[max(0, chain[0].start - NEAR) : chain[0].start]
    after = said[last.end + 1 : last.end + 1 + NEAR]
    after = _MODULUS.sub("", after) if _CONGRUENT.search(before) else after
    if _WITHIN.search(before) or _BEYOND.match(after):
        return None
    texts = [said[box.content : box.end] for box in chain]
    if after[:1].isdigit() or after.startswith("{") or not all(map(str.strip, texts)):
        return None
    if len(texts) == 1 and _PERCENT.match(after):
        texts[0] += r"\%"
    elif _TIMES.match(after):
        return None
    return Part(r" ,\ ".join(texts), True)


# ---------------------------------------------------------------- form


def well_formed(completion: str) -> bool:
    """Whether a completion is ``<think>``, text, ``</think>``, ``<answer>``, text, ``</answer>`` and nothing else, each
    tag once and on a line of its own, and neither text empty."""
    if any(completion.count(tag) != 1 for tag in TAGS):
        return False
    if not (completion.startswith(f"{THINK}\n") and completion.endswith(f"\n{END_ANSWER}")):
        return False
    thought, middle, answer = completion[len(THINK) + 1 : -len(END_ANSWER) - 1].partition(f"\n{END_THINK}\n{ANSWER}\n")
    return bool(middle and thought.strip() and answer.strip())


def well_formed_by_authors(completion: str) -> bool:
    """As format_reward of open-r1 (huggingface/open-r1 @ 1416fa0, the papers' training code): the tags in this order at
    the beginning, whatever follows the line that ``</answer>`` ends; tags may be repeated and texts empty."""
    middle = f"\n{END_THINK}\n{ANSWER}\n"
    if not completion.startswith(f"{THINK}\n"):
        return False
    start = completion.find(middle, len(THINK) + 1)
    if start < 0:
        return False
    start += len(middle)
    end = f"\n{END_ANSWER}"
    return completion.find(f"{end}\n", start) >= 0 or completion.endswith(end, start)


def tag_count(completion: str) -> float:
    """A quarter for each of the four tags that occurs exactly once with the line breaks that the format asks for.

    As tag_count_reward of open-r1 (huggingface/open-r1): where the tags stand and what is between them does not count,
    nor does what follows ``</answer>``, so that a model earns it without an answer.
    """
    tags = (f"{THINK}\n", f"\n{END_THINK}\n", f"\n{ANSWER}\n", f"\n{END_ANSWER}")
    return sum(completion.count(tag) == 1 for tag in tags) / 4
