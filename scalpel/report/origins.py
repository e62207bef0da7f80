"""What the page says of base models and questions: whose they are, and what scores of them are not about."""

from __future__ import annotations

from typing import NamedTuple

from scalpel.exhibits.results import task_name


class Origins(NamedTuple):
    """toy_world: model and questions are toys, all of them. description: of what the study's numbers are about.
    caution: beside the answer, "" where there is nothing to warn of. toy_models, toy_questions: names of toys. models,
    questions: of what is none, in words. rows: whether trained rows are the toy world's where something else is not."""

    toy_world: bool
    description: str
    caution: str
    toy_models: list[str]
    models: list[str]
    toy_questions: list[str]
    questions: dict[str, str]
    rows: bool


def origins(found: dict, description: str) -> Origins:
    """found: the recipe's `origins` (scalpel/plan/origin.py). description: the scale's, which is about its own toy."""
    toy_models = [name for name, one in found["models"].items() if one["toy"]]
    models = [one["what"] for one in found["models"].values() if not one["toy"]]
    toy_questions = list(dict.fromkeys(task_name(name) for name, one in found["questions"].items() if one["toy"]))
    questions = {task_name(name): one["what"] for name, one in found["questions"].items() if not one["toy"]}
    world = bool(toy_models) and not models and not questions
    if world:
        caution = "A toy model in a generated world: nothing here is about a 7B model."
    elif toy_models and not models:
        caution = "A toy model: nothing here is about a 7B model."
    elif toy_questions:
        caution = f"The questions of {', '.join(toy_questions)} are generated: these are no scores on the public sets."
    else:
        caution = ""
    said = "; ".join(dict.fromkeys(one["what"] for one in found["models"].values())) if models else description
    return Origins(
        world, said, caution, toy_models, models, toy_questions, questions, not world and bool(found["rows"])
    )
