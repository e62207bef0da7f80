"""Instructions of the toy world: IFEval's own, judged by IFEval's checkers, that a model of its size follows or breaks.

A response that knows nothing of an instruction breaks it, so that a model that only writes something scores 0.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One of IFEval's instructions: its id and arguments there, the sentence that asks for it, and what it shapes.

    shapes: ``body`` (the sentence that answers), ``before`` or ``after`` it, or ``whole``; two of one response shape
    different things.
    """

    id: str
    arguments: dict
    sentence: str
    shapes: str
    text: str  # the body, with {} for the answer, or what stands before, after or around it


def _instructions() -> list[Instruction]:
    """One of each kind that shapes a whole response; words to include and phrases to end with, several of each."""
    words, marker = {"relation": "at least", "num_words": 9}, {"postscript_marker": "P.S."}
    found = [
        Instruction(
            "detectable_format:number_bullet_lists", {"num_bullets": 2}, "Write exactly 2 bullet points.", "body",
            "* I counted.\n* It is {}.",
        ),
        Instruction(
            "length_constraints:number_words", words, "Use at least 9 words.", "body",
            "I counted all of them, one by one, and it is {}.",
        ),
        Instruction("startend:quotation", {}, "Wrap your entire response in double quotation marks.", "whole", '"{}"'),
        Instruction(
            "detectable_format:title", {}, "Give a title, wrapped in double angular brackets.", "before",
            "<<My answer>>\n",
        ),
        Instruction(
            "detectable_content:postscript", marker, "Add a postscript starting with P.S.", "after",
            "\nP.S. Well done.",
        ),
    ]  # fmt: skip
    for word in ("total", "sum", "result", "amount", "number", "outcome"):
        asks = f"Include the word {word}."
        found.append(Instruction("keywords:existence", {"keywords": [word]}, asks, "body", f"The {word} is {{}}."))
    for phrase in ("That is all.", "Good luck!", "Ask me more.", "See you soon."):
        asks = f"Finish with this exact phrase: {phrase}"
        found.append(Instruction("startend:end_checker", {"end_phrase": phrase}, asks, "after", f" {phrase}"))
    return found


INSTRUCTIONS = _instructions()


def fitting(one: Instruction) -> list[Instruction]:
    """Those that can be asked beside this one: they shape something else, and neither shapes the whole."""
    return [other for other in INSTRUCTIONS if other.shapes != one.shapes and "whole" not in (one.shapes, other.shapes)]


def instructions(rng: random.Random) -> list[Instruction]:
    """One instruction or two, in the order in which they are asked."""
    first = rng.choice(INSTRUCTIONS)
    others = fitting(first)
    return [first, rng.choice(others)] if others and rng.random() < 0.5 else [first]


def obeyed(answer: int, asked: list[Instruction]) -> str:
    """A short response that follows every instruction; with none, the answer alone."""
    parts = {instruction.shapes: instruction.text for instruction in asked}
    body = parts.get("body", "The answer is {}.").format(answer)
    return parts.get("whole", "{}").format(parts.get("before", "") + body + parts.get("after", ""))
