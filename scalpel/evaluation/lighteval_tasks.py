"""LightEval's tasks over local rows, by the format of their question set: its prompt functions and metrics, without its
registry or the hub.

Importing LightEval's registry imports every task module, one of which downloads; so tasks are built here from
LightEval's own parts. They differ from its built-in tasks in these points:

* math and aime: the problem alone is the user's turn, as in training (the built-ins put instructions around it, and so
  did the papers' evaluation of aime24); the score is LightEval's avg@n. Another turn is given by a task's `prompt`.
* mmlu: log-likelihood of the letters, as in the papers (the built-in is generative); macro average over subjects.

With ``formulation: cloze`` the choices themselves are scored instead of letters: a toy model knows facts before it can
bind letters to choices. exact_match is LightEval's ExactMatches on what stands in the last ``<answer>`` tags or box,
else all that follows the reasoning, letter case, spacing and punctuation around it aside. (HELM's normalisation drops
all punctuation, so that 4.0 equals 40.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from packaging.specifiers import SpecifierSet

from scalpel.config.evaluation import TaskRecipe
from scalpel.data.sources import last_boxed
from scalpel.errors import UserError
from scalpel.evaluation.question_set import QuestionSet

# LightEval 0.13 pins latex2sympy2_extended 1.0.6 and refuses others at import; math-verify 0.9 needs 1.11,
# with which LightEval's extraction gives the same results (tests/test_evaluation.py).
from lighteval.utils import imports  # isort: skip

imports.required_dependencies()[0]["latex2sympy2_extended"].specifier = SpecifierSet()

from lighteval.metrics.metrics import Metrics  # noqa: E402
from lighteval.metrics.metrics_sample import AvgAtN, ExactMatches  # noqa: E402
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig  # noqa: E402
from lighteval.tasks.requests import Doc  # noqa: E402

Splits = dict[str, list[dict]]


class LocalTask(LightevalTask):
    """A LightevalTask whose splits are rows in memory; `row` of a row is its number in the question set."""

    def __init__(self, config: LightevalTaskConfig, splits: Splits):
        super().__init__(config)
        self.dataset = splits

    def question(self, doc: Doc) -> int:
        """Number of the document's question in the question set."""
        return self.dataset[self.evaluation_split[0]][int(doc.id)]["row"]


def build(tasks: dict[str, tuple[TaskRecipe, QuestionSet]]) -> dict[str, LocalTask]:
    """LightEval tasks by full name; MMLU makes one per subject. UserError for a task that its set does not allow."""
    built = {}
    for name, (recipe, questions) in tasks.items():
        for config, splits in BUILDERS[questions.format](name, recipe, questions):
            config.num_fewshots = recipe.shots
            config.full_name = f"{config.name}|{recipe.shots}"
            config.prompt_function = prompted(config.prompt_function, recipe.prompt, name)
            task = LocalTask(config, splits)
            if recipe.prompt is not None:  # said here rather than in the midst of a run
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

    A list, such as choices, is laid out as lettered lines.
    """
    if template is None:
        return function

    def prompt(line: dict, task_name: str = "") -> Doc:
        doc = function(line, task_name)
        doc.query, doc.instruction = filled_in(template, line | (doc.specific or {}), task), None
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


class RememberingAvgAtN(AvgAtN):
    """LightEval's avg@n that also keeps the score of every sample."""

    def compute(self, doc, model_response, **kwargs):
        scores = [float(self.compute_score(doc, self.one(model_response, i))) for i in range(self.n)]
        model_response.sample_scores = scores
        return sum(scores) / len(scores)

    def one(self, model_response, number: int):
        """One sample of a response, as LightEval takes it out: with its reasoning."""
        return model_response[number]


class WithoutReasoning(RememberingAvgAtN):
    """avg@n of a metric that reads one completion without its reasoning."""

    def one(self, model_response, number: int):
        single = model_response[number]
        single.text_post_processed = [model_response.final_text[number]]
        return single


def avg_at_n(samples: int):
    metric = Metrics.avg_at_n_math.value
    scorer = RememberingAvgAtN(n=samples, sample_scoring_function=metric.sample_level_fn.compute_score)
    return replace(metric, sample_level_fn=scorer)


def averaged(metric, samples: int):
    """A metric of one completion, or the mean of it over several (avg@n)."""
    if samples == 1:
        return metric
    scorer = WithoutReasoning(n=samples, sample_scoring_function=metric.sample_level_fn.compute)
    return replace(metric, metric_name="avg@n", sample_level_fn=scorer)


def exact_match():
    compared = ExactMatches(normalize_gold=plain, normalize_pred=lambda text: plain(final(text)))
    return replace(Metrics.exact_match.value, sample_level_fn=compared)


def plain(text: str) -> str:
    """A text without letter case, runs of blanks and the punctuation around it, a sign or bracket aside."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*$")


def final(text: str) -> str:
    """What stands in the last ``<answer>`` tags of a completion, else in its last box, else all of it."""
    if "<answer>" in text:
        return text.rpartition("<answer>")[2].partition("</answer>")[0]
    return last_boxed(text) or text


# ---------------------------------------------------------------- tasks by format


def _config(name: str, recipe: TaskRecipe, function: Callable, metric, **more) -> LightevalTaskConfig:
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


def _splits(name: str, recipe: TaskRecipe, questions: QuestionSet) -> Splits:
    examples = questions.examples() if recipe.shots else []
    if len(examples) < recipe.shots:
        raise UserError(
            f"evaluation.tasks.{name}: {recipe.shots} shots need as many examples, its question set has "
            f"{len(examples)}; give it `examples`, or lower `shots`."
        )
    return {"test": questions.rows(recipe.limit), "train": examples}


def _generative(function: Callable, metric: Callable[[int], Any], shots: str = "sequential", **more):
    """A builder of tasks that are answered in words. metric: number of samples -> metric."""

    def builder(name: str, recipe: TaskRecipe, questions: QuestionSet) -> Iterator[tuple[LightevalTaskConfig, Splits]]:
        if recipe.formulation != "letters":
            raise UserError(
                f"evaluation.tasks.{name}: `formulation` is for multiple choice; its question set has the format "
                f"{questions.format}."
            )
        config = _config(
            name, recipe, function(), metric(recipe.samples), generation_size=recipe.max_new_tokens,
            few_shots_select=shots, **more,
        )  # fmt: skip
        yield config, _splits(name, recipe, questions)

    return builder


def _multiple_choice(name: str, recipe: TaskRecipe, questions: QuestionSet, letters: Callable):
    """(config, splits) of a task whose choices are scored."""
    if recipe.samples != 1:
        raise UserError(f"evaluation.tasks.{name}: `samples` is for what is answered in words; leave it out.")
    function = cloze_prompt if recipe.formulation == "cloze" else letters
    config = _config(name, recipe, function, Metrics.loglikelihood_acc, few_shots_select="sequential")
    return config, _splits(name, recipe, questions)


def _mmlu(name: str, recipe: TaskRecipe, questions: QuestionSet):
    from lighteval.tasks.tasks.mmlu import mmlu_prompt

    config, splits = _multiple_choice(name, recipe, questions, mmlu_prompt)
    for subject in sorted({row["subject"] for row in splits["test"]}):
        mine = {split: [row for row in rows if row["subject"] == subject] for split, rows in splits.items()}
        if len(mine["train"]) < recipe.shots:
            raise UserError(
                f"evaluation.tasks.{name}: {recipe.shots} shots, but only {len(mine['train'])} examples of subject "
                f"{subject!r}; give more, or lower `shots`."
            )
        yield replace(config, name=f"{name}:{subject}"), mine


def _choice(name: str, recipe: TaskRecipe, questions: QuestionSet):
    yield _multiple_choice(name, recipe, questions, letters_prompt)


def _ifeval(name: str, recipe: TaskRecipe, questions: QuestionSet):
    from scalpel.evaluation.sentences import provide_punkt

    provide_punkt()
    import langdetect
    from lighteval.tasks.tasks.ifeval.main import ifeval_metrics, ifeval_prompt

    langdetect.DetectorFactory.seed = 0  # it guesses with random numbers of its own
    if recipe.samples != 1:
        raise UserError(f"evaluation.tasks.{name}: IFEval judges one completion a question; leave `samples` out.")
    for config, splits in _generative(lambda: ifeval_prompt, lambda _: ifeval_metrics)(name, recipe, questions):
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


def _gsm8k_prompt():
    from lighteval.tasks.tasks.gsm8k import gsm8k_prompt

    return gsm8k_prompt


def _gpqa_prompt():
    from lighteval.tasks.tasks.gpqa import gpqa_instruct_prompt

    def prompt(line: dict, task_name: str = "") -> Doc:
        doc = gpqa_instruct_prompt(line, task_name)  # it shuffles the choices
        choices = [line[f"Incorrect Answer {number}"] for number in (1, 2, 3)]
        choices.insert(doc.gold_index, line["Correct Answer"])
        doc.specific = {"choices": choices}
        return doc

    return prompt


BUILDERS: dict[str, Callable[[str, TaskRecipe, QuestionSet], Iterator[tuple[LightevalTaskConfig, Splits]]]] = {
    "math": _generative(lambda: math_prompt, avg_at_n),
    "aime": _generative(lambda: math_prompt, avg_at_n),
    "gsm8k": _generative(
        _gsm8k_prompt, lambda n: averaged(Metrics.expr_gold_metric.value, n), "random_sampling_from_train",
        stop_sequence=["Question:"],
    ),
    "gpqa": _generative(_gpqa_prompt, lambda n: averaged(Metrics.gpqa_instruct_metric.value, n)),
    "exact_match": _generative(lambda: question_prompt, lambda n: averaged(exact_match(), n)),
    "mmlu": _mmlu,
    "choice": _choice,
    "ifeval": _ifeval,
}  # fmt: skip
