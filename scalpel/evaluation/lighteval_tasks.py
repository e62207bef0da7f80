"""LightEval's tasks over local rows, by the format of their question set: its prompt functions and metrics, without its
registry or the hub.

Importing LightEval's registry imports every task module, one of which downloads; so tasks are built here from
LightEval's own parts. They differ from its built-in tasks in these points:

* math and aime: the problem alone is the user's turn, as in training (the built-ins put instructions around it, and so
  did the papers' evaluation of aime24). Another turn is given by a task's `prompt`.
* math, aime, gsm8k, gpqa: what is the answer and whether it is right is decided by scalpel/grading, as for rewards; the
  score of several samples is their mean (avg@n).
* mmlu: log-likelihood of the letters, as in the papers (the built-in is generative); macro average over subjects.

* multiple choice with ``formulation: written``: LightEval's instruction of GPQA, for as many letters as there are.

With ``formulation: cloze`` the choices themselves are scored instead of letters: a toy model knows facts before it can
bind letters to choices. exact_match compares the answer of a completion as text, letter case, spacing and punctuation
around it aside. (HELM's normalisation drops all punctuation, so that 4.0 equals 40.)
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from scalpel.config.evaluation import TaskRecipe
from scalpel.errors import UserError
from scalpel.evaluation.grading import HARNESS_SECONDS
from scalpel.evaluation.question_set import QuestionSet
from scalpel.grading.children import SECONDS
from scalpel.grading.judge import RULES, exact, strict

# LightEval 0.13 pins latex2sympy2_extended 1.0.6 and refuses others at import; math-verify 0.9 needs 1.11,
# with which LightEval's extraction gives the same results (tests/test_evaluation.py).
from lighteval.utils import imports  # isort: skip

imports.required_dependencies()[0]["latex2sympy2_extended"].specifier = SpecifierSet()

from lighteval.metrics.metrics import Metrics  # noqa: E402
from lighteval.metrics.metrics_sample import SampleLevelComputation, SamplingMetric  # noqa: E402
from lighteval.metrics.utils.metric_utils import SampleLevelMetric  # noqa: E402
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig  # noqa: E402
from lighteval.tasks.requests import Doc, SamplingMethod  # noqa: E402

if TYPE_CHECKING:
    from lighteval.metrics.utils.metric_utils import Metric
    from lighteval.models.model_output import ModelResponse

Splits = dict[str, list[dict]]


class LocalTask(LightevalTask):
    """A LightevalTask whose splits are rows in memory; `row` of a row is its number in the question set."""

    def __init__(self, config: LightevalTaskConfig, splits: Splits):
        super().__init__(config)
        self.dataset = splits

    @property
    def seconds(self) -> float:
        """Processor time for grading one sample."""
        ours = all(isinstance(metric.sample_level_fn, Answered) for metric in self.metrics)
        return SECONDS if ours else HARNESS_SECONDS

    def question(self, doc: Doc) -> int:
        """Number of the document's question in the question set."""
        return self.dataset[self.evaluation_split[0]][int(doc.id)]["row"]


def build(tasks: dict[str, tuple[TaskRecipe, QuestionSet]], rule: str = "strict") -> dict[str, LocalTask]:
    """LightEval tasks by full name; MMLU makes one per subject. UserError for a task that its set does not allow.

    rule: of scalpel/grading/judge.py, by which maths is graded.
    """
    built = {}
    for name, (recipe, questions) in tasks.items():
        for config, splits in BUILDERS[questions.format](name, recipe, questions, rule):
            config.num_fewshots = recipe.shots
            config.full_name = f"{config.name}|{recipe.shots}"
            config.prompt_function = prompted(config.prompt_function, recipe.prompt, name)
            task = LocalTask(config, splits)
            if recipe.prompt is not None:  # {instruction} is not every harness's; said before anything is asked
                config.prompt_function(splits[config.evaluation_splits[0]][0], config.full_name)
            built[config.full_name] = task
    return built


def documents(tasks: dict[str, LocalTask]) -> dict[str, list[Doc]]:
    """LightEval's documents of every task. Its GPQA prompt shuffles choices with the global generator: seeded."""
    random.seed(1234)
    return {name: task.get_docs() for name, task in tasks.items()}


# ---------------------------------------------------------------- the user's turn


def prompted(function: Callable, template: str | None, task: str) -> Callable:
    """A prompt function whose user's turn is `template` with a row's columns in braces, the harness's own when None.

    A list, such as choices, is laid out as lettered lines. {instruction} is the harness's; where a template begins with
    it, it is said once, in front of the first example.
    """
    if template is None:
        return function

    def prompt(line: dict, task_name: str = "") -> Doc:
        doc = function(line, task_name)
        said = doc.instruction or ""
        columns = ({"instruction": said} if said else {}) | line | (doc.specific or {})
        doc.query = filled_in(template, columns, task)
        doc.instruction = said if said and doc.query.startswith(said) else None
        return doc

    return prompt


def filled_in(template: str, row: dict, task: str) -> str:
    """The template with the row's columns in place of their names in braces; UserError for a name it has not."""
    hidden = ("row", "__few_shots", "__index")
    columns = {name: _shown(value) for name, value in row.items() if name not in hidden}
    try:
        return template.format_map(columns)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise UserError(
            f"evaluation.tasks.{task}.prompt: {{{str(error).strip(chr(39))}}} cannot be filled in; its question set "
            f"has {', '.join(columns)}, and a brace that is text is written twice."
        ) from None


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return "\n".join(f"{letter}. {item}" for letter, item in zip(ascii_uppercase, value, strict=False))
    return value


# ---------------------------------------------------------------- metrics


class Answered(SamplingMetric, SampleLevelComputation):
    """A rule of scalpel/grading/judge.py as LightEval's metric of one completion, of which `samples` are asked for."""

    def __init__(self, judge: Callable[[str, str], bool | None], gold: Callable[[Doc], str], samples: int):
        self.judge, self.gold, self.samples = judge, gold, samples

    def compute(self, doc: Doc, model_response: ModelResponse, **kwargs: Any) -> float:
        return float(self.judge(self.gold(doc), model_response.text[0]) is True)

    def num_samples(self) -> int:
        return self.samples


def answered(name: str, gold: Callable[[Doc], str], judge: Callable | None = None) -> Callable[[int, str], Any]:
    """(samples, rule) -> the metric `name`, avg@n of several samples. judge: whatever the rule."""

    def metric(samples: int, rule: str) -> SampleLevelMetric:
        level = Answered(judge or RULES[rule], gold, samples)
        return SampleLevelMetric(
            metric_name=name if samples == 1 else "avg@n", higher_is_better=True, category=SamplingMethod.GENERATIVE,
            sample_level_fn=level, corpus_level_fn=statistics.fmean,
        )  # fmt: skip

    return metric


def first_gold(doc: Doc) -> str:
    return doc.get_golds()[0]


def gsm8k_gold(doc: Doc) -> str:
    return first_gold(doc).rpartition("####")[2].strip()


# ---------------------------------------------------------------- tasks by format


def _config(name: str, recipe: TaskRecipe, function: Callable, metric: Metric, **more: Any) -> LightevalTaskConfig:
    return LightevalTaskConfig(
        name=name,
        prompt_function=function,
        hf_repo="local",
        hf_subset="default",
        hf_avail_splits=["test", "train"],
        evaluation_splits=["test"],
        few_shots_split="train",
        metrics=[metric],
        **more,
    )


def _splits(recipe: TaskRecipe, questions: QuestionSet) -> Splits:
    return {"test": questions.rows(recipe.limit), "train": questions.examples() if recipe.shots else []}


def _generative(
    function: Callable, metric: Callable[[int, str], Any], shots: str = "sequential", **more: Any
) -> Builder:
    """A builder of tasks that are answered in words. metric: (number of samples, rule) -> metric."""

    def builder(
        name: str, recipe: TaskRecipe, questions: QuestionSet, rule: str
    ) -> Iterator[tuple[LightevalTaskConfig, Splits]]:
        config = _config(
            name, recipe, function(), metric(recipe.samples, rule), generation_size=recipe.max_new_tokens,
            few_shots_select=shots, **more,
        )  # fmt: skip
        yield config, _splits(recipe, questions)

    return builder


def _multiple_choice(
    name: str, recipe: TaskRecipe, questions: QuestionSet, rule: str, letters: Callable
) -> tuple[LightevalTaskConfig, Splits]:
    """(config, splits) of a task whose choices are scored, or whose letter is written."""
    if recipe.formulation == "written":
        return next(_generative(lambda: written_prompt, LETTER)(name, recipe, questions, rule))
    function = cloze_prompt if recipe.formulation == "cloze" else letters
    config = _config(name, recipe, function, Metrics.loglikelihood_acc, few_shots_select="sequential")
    return config, _splits(recipe, questions)


def _mmlu(
    name: str, recipe: TaskRecipe, questions: QuestionSet, rule: str
) -> Iterator[tuple[LightevalTaskConfig, Splits]]:
    from lighteval.tasks.tasks.mmlu import mmlu_prompt

    config, splits = _multiple_choice(name, recipe, questions, rule, mmlu_prompt)
    for subject in sorted({row["subject"] for row in splits["test"]}):
        mine = {split: [row for row in rows if row["subject"] == subject] for split, rows in splits.items()}
        if len(mine["train"]) < recipe.shots:
            raise UserError(
                f"evaluation.tasks.{name}: {recipe.shots} shots, but only {len(mine['train'])} examples of subject "
                f"{subject!r}; give more, or lower `shots`."
            )
        yield replace(config, name=f"{name}:{subject}"), mine


def _choice(
    name: str, recipe: TaskRecipe, questions: QuestionSet, rule: str
) -> Iterator[tuple[LightevalTaskConfig, Splits]]:
    yield _multiple_choice(name, recipe, questions, rule, letters_prompt)


def _ifeval(
    name: str, recipe: TaskRecipe, questions: QuestionSet, rule: str
) -> Iterator[tuple[LightevalTaskConfig, Splits]]:
    from scalpel.evaluation.ifeval import instructions

    instructions()
    from lighteval.tasks.tasks.ifeval.main import ifeval_metrics, ifeval_prompt

    for config, splits in _generative(lambda: ifeval_prompt, lambda *_: ifeval_metrics)(name, recipe, questions, rule):
        yield (
            config,
            {
                split: [row | {"kwargs": json.loads(row["kwargs__json"])} for row in rows]
                for split, rows in splits.items()
            },
        )


def math_prompt(line: dict, task_name: str = "") -> Doc:
    return Doc(task_name=task_name, query=line["problem"], choices=[f"$\\boxed{{{line['answer']}}}$"], gold_index=0)


def question_prompt(line: dict, task_name: str = "") -> Doc:
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)


def cloze_prompt(line: dict, task_name: str = "") -> Doc:
    query = f"Question: {line['question']}\nAnswer:"
    return Doc(task_name=task_name, query=query, choices=[f" {c}" for c in line["choices"]], gold_index=line["answer"])


def letters_prompt(line: dict, task_name: str = "") -> Doc:
    query = f"Question: {line['question']}\n{_shown(line['choices'])}\nAnswer:"
    letters = [f" {letter}" for letter in ascii_uppercase[: len(line["choices"])]]
    return Doc(task_name=task_name, query=query, choices=letters, gold_index=line["answer"])


def written_prompt(line: dict, task_name: str = "") -> Doc:
    choices = line["options" if "options" in line else "choices"]
    letters = ascii_uppercase[: len(choices)]
    gold = line.get("answer_index", line["answer"])
    query = f"{WRITTEN.format(letters)}\n\n{line['question'].strip()}\n\n{_shown(choices)}"
    return Doc(task_name=task_name, query=query, choices=list(letters), gold_index=gold, instruction=None)


def _gsm8k_prompt() -> Callable:
    from lighteval.tasks.tasks.gsm8k import gsm8k_prompt

    return gsm8k_prompt


def _gpqa_prompt() -> Callable:
    from lighteval.tasks.tasks.gpqa import gpqa_instruct_prompt

    def prompt(line: dict, task_name: str = "") -> Doc:
        doc = gpqa_instruct_prompt(line, task_name)  # it shuffles the choices
        choices = [line[f"Incorrect Answer {number}"] for number in (1, 2, 3)]
        choices.insert(doc.gold_index, line["Correct Answer"])
        doc.specific = {"choices": choices}
        return doc

    return prompt


LETTER = answered("extractive_match", first_gold, strict)
WRITTEN = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of {}. Think step by step before answering."
)
Builder = Callable[[str, TaskRecipe, QuestionSet, str], Iterator[tuple[LightevalTaskConfig, Splits]]]
BUILDERS: dict[str, Builder] = {
    "math": _generative(lambda: math_prompt, answered("avg@n", first_gold)),
    "aime": _generative(lambda: math_prompt, answered("avg@n", first_gold)),
    "gsm8k": _generative(
        _gsm8k_prompt, answered("extractive_match", gsm8k_gold), "random_sampling_from_train",
        stop_sequence=["Question:"],
    ),
    "gpqa": _generative(_gpqa_prompt, LETTER),
    "exact_match": _generative(lambda: question_prompt, answered("em", first_gold, exact)),
    "mmlu": _mmlu,
    "choice": _choice,
    "mmlu_pro": _choice,  # written; else it is lm-eval's
    "ifeval": _ifeval,
}  # fmt: skip
