"""Question sets, benchmarks that name them, and how answers are sampled.

A question set is a result of its own, and each group of tasks one evaluation job: a new benchmark, which is a group of
its own unless it says otherwise, makes nothing else again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from scalpel.config.data import GitHubFile, HubDataset
from scalpel.config.types import (
    AtOnce,
    Few,
    Fraction,
    Location,
    Name,
    NameOrPath,
    Positive,
    Recipe,
    Strict,
    Tokens,
    Whole,
    later,
    unhashed,
)

Format = Literal["math", "aime", "gsm8k", "gpqa", "mmlu", "mmlu_pro", "ifeval", "exact_match", "choice", "facts"]
FORMATS: dict[str, Format] = {  # of sets that bear a public dataset's name
    "math_500": "math", "aime24": "aime", "aime25": "aime", "gsm8k": "gsm8k", "gpqa_diamond": "gpqa", "mmlu": "mmlu",
    "mmlu_pro": "mmlu_pro", "ifeval": "ifeval", "facts": "facts",
}  # fmt: skip


TOY_DRAWN: dict[str, tuple[Format, dict[str, str]]] = {  # (format, columns) of sets that are drawn for themselves
    "aime25": ("aime", {}),
    "amc": ("math", {}),
    "arc_challenge": ("choice", {"choices": "choices.text", "labels": "choices.label", "answer": "answerKey"}),
}


class ToyQuestions(Strict):
    """The toy world's file of the set's name, or `count` questions of a set of TOY_DRAWN (scalpel/toy/benchmarks.py).

    shuffle: as of FileQuestions.
    """

    kind: Literal["toy"] = "toy"
    count: Annotated[int, Field(gt=0, le=10**5)] | None = None
    shuffle: Whole | None = None


class FileQuestions(Strict):
    """One parquet file (what is fetched as jsonl, json or csv is converted), and one of few-shot examples if there is
    one.

    format: whose columns the file has and how answers are scored (scalpel/evaluation/formats.py); needed unless the
    set bears a public dataset's name. `columns` maps that format's columns to the file's. `shuffle`: the seed of the
    order in which choices are shown, each question's own; None: the file's order.
    """

    kind: Literal["files"] = "files"
    file: Location | HubDataset | GitHubFile
    examples: Location | HubDataset | GitHubFile | None = None
    format: Format | None = None
    columns: dict[str, str] = {}
    shuffle: Whole | None = None


class LMEvalQuestions(Strict):
    """A task of lm-eval: the path of its YAML, or the name of one that lm-eval ships.

    files: split -> parquet, jsonl or csv file; needed when the YAML names a dataset of the hub.
    """

    kind: Literal["lm_eval"] = "lm_eval"
    lm_eval: NameOrPath
    files: dict[str, Location | HubDataset | GitHubFile] = {}


def _kind(value: Any) -> str | None:
    """The kind may be left out: its fields tell."""
    found = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if found is None and isinstance(value, dict):
        found = "files" if "file" in value else "lm_eval" if "lm_eval" in value else None
    return found


QuestionSet = Annotated[
    Annotated[ToyQuestions, Tag("toy")]
    | Annotated[FileQuestions, Tag("files")]
    | Annotated[LMEvalQuestions, Tag("lm_eval")],
    Discriminator(
        _kind,
        custom_error_type="question_set",
        custom_error_message="give `file`, `lm_eval` or `kind: toy`",
    ),
]


class TaskRecipe(Recipe):
    """One benchmark: a question set and how it is asked. `group`: tasks of one group are one job and one result."""

    questions: Name | None = unhashed(None)  # the set; None: the one of the task's own name
    group: Name | None = unhashed(None)  # None: a group of its own
    at: Literal["all", "last"] = unhashed("all")  # which of the evaluated checkpoints
    shots: Annotated[int, Field(ge=0, le=100)] = 0
    samples: Annotated[int, Field(gt=0, le=4096)] = 1  # completions per question; the score is their mean (avg@n)
    max_new_tokens: Tokens = 4096
    limit: Positive | None = None  # first questions only; None: all
    # Of multiple choice: letters are scored, or the choices themselves (cloze), or a letter is written after thinking.
    formulation: Literal["letters", "cloze", "written"] = "letters"
    prompt: str | None = None  # the user's turn, with the set's columns in braces; None: the harness's own
    one_turn: bool = later(
        False, as_before=False
    )  # mmlu_pro: all examples in the user's one turn, as the paper had them


class EvaluationRecipe(Recipe):
    """Tasks and sampling. `inference` is part of it: two engines round differently, and what they sample differs."""

    tasks: dict[Name, TaskRecipe]
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.6
    top_p: Fraction = 0.95
    seed: Whole = 42  # common to all runs and their seeds, so that scores stay paired
    inference: Literal["transformers", "vllm"] = "transformers"
    answer_rule: Literal["strict", "authors"] = later(
        "strict", as_before="strict"
    )  # of maths: scalpel/grading/judge.py

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        self.groups()
        return self

    def groups(self) -> dict[str, EvaluationRecipe]:
        """Each group's share of the tasks, by the group's name, in the order of the tasks."""
        names: dict[str, dict[str, TaskRecipe]] = {}
        for name, task in self.tasks.items():
            names.setdefault(task.group or name, {})[name] = task
        for group, tasks in names.items():
            if len({task.at for task in tasks.values()}) > 1:
                raise ValueError(f"tasks of group {group!r} must have one value of `at`")
        return {group: self.model_copy(update={"tasks": tasks}) for group, tasks in names.items()}


class EvaluationSettings(Strict):
    batch_size: AtOnce = 64
    threads: Few = 1
    memory_fraction: Fraction = 0.9  # of a GPU, for vLLM's weights and cache
