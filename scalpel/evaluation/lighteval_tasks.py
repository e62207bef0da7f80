"""LightEval's tasks over local rows: its prompt functions and metrics, without its registry or the hub.

Importing LightEval's registry imports every task module, one of which downloads; so tasks are built here
from LightEval's own parts. They differ from its built-in tasks in two points:

* math_500 and aime24: the problem alone is the user's turn, as in training (the built-ins put instructions
  around it, and so did the papers' evaluation of aime24); the score is LightEval's avg@n.
* mmlu: log-likelihood of the letters, as in the papers (the built-in is generative); macro average over subjects.

With ``formulation: cloze`` the choices themselves are scored instead of letters: a toy model knows facts
before it can bind letters to choices.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
from packaging.specifiers import SpecifierSet

from scalpel.config.evaluation import TaskRecipe
from scalpel.errors import UserError

# LightEval 0.13 pins latex2sympy2_extended 1.0.6 and refuses others at import; math-verify 0.9 needs 1.11,
# with which LightEval's extraction gives the same results (tests/test_evaluation.py).
from lighteval.utils import imports  # isort: skip

imports.required_dependencies()[0]["latex2sympy2_extended"].specifier = SpecifierSet()

from lighteval.metrics.metrics import Metrics  # noqa: E402
from lighteval.metrics.metrics_sample import AvgAtN  # noqa: E402
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig  # noqa: E402
from lighteval.tasks.requests import Doc  # noqa: E402


class RememberingAvgAtN(AvgAtN):
    """LightEval's avg@n that also keeps the score of every sample."""

    def compute(self, doc, model_response, **kwargs):
        scores = [float(self.compute_score(doc, model_response[i])) for i in range(self.n)]
        model_response.sample_scores = scores
        return sum(scores) / len(scores)


def math_prompt(line: dict, task_name: str = "") -> Doc:
    return Doc(task_name=task_name, query=line["problem"], choices=[f"$\\boxed{{{line['answer']}}}$"], gold_index=0)


def cloze_prompt(line: dict, task_name: str = "") -> Doc:
    query = f"Question: {line['question']}\nAnswer:"
    return Doc(task_name=task_name, query=query, choices=[f" {c}" for c in line["choices"]], gold_index=line["answer"])


class LocalTask(LightevalTask):
    """A LightevalTask whose splits are rows in memory; `row` of a row is its number in the question file."""

    def __init__(self, config: LightevalTaskConfig, splits: dict[str, list[dict]]):
        super().__init__(config)
        self.dataset = splits

    def question(self, doc: Doc) -> int:
        """Number of the document's question in the question file."""
        return self.dataset[self.evaluation_split[0]][int(doc.id)]["row"]


def avg_at_n(samples: int):
    metric = Metrics.avg_at_n_math.value
    scorer = RememberingAvgAtN(n=samples, sample_scoring_function=metric.sample_level_fn.compute_score)
    return _copy(metric, sample_level_fn=scorer)


def _copy(metric, **changes):
    from dataclasses import replace

    return replace(metric, **changes)


def build(tasks: dict[str, TaskRecipe], data: Path) -> dict[str, LocalTask]:
    """LightEval tasks by full name; MMLU makes one per subject. UserError when a task's file is absent."""
    built = {}
    for name, recipe in tasks.items():
        for config, splits in BUILDERS[name](recipe, data):
            config.num_fewshots = recipe.shots
            config.full_name = f"{config.name}|{recipe.shots}"
            built[config.full_name] = LocalTask(config, splits)
    return built


def _rows(data: Path, name: str, limit: int | None = None) -> list[dict]:
    path = data / f"{name}.parquet"
    if not path.is_file():
        raise UserError(f"evaluation.tasks: a task needs evaluation_files.files.{name}, which was not given.")
    return [row | {"row": number} for number, row in enumerate(pq.read_table(path).to_pylist()[:limit])]


def _math(name: str):
    def builder(recipe: TaskRecipe, data: Path):
        config = LightevalTaskConfig(
            name=name,
            prompt_function=math_prompt,
            hf_repo="local",
            hf_subset="default",
            hf_avail_splits=["test"],
            evaluation_splits=["test"],
            generation_size=recipe.max_new_tokens,
            metrics=[avg_at_n(recipe.samples)],
        )
        yield config, {"test": _rows(data, name, recipe.limit)}

    return builder


def _gsm8k(recipe: TaskRecipe, data: Path):
    from lighteval.tasks.tasks.gsm8k import gsm8k_prompt

    splits = {"test": _rows(data, "gsm8k", recipe.limit)}
    if recipe.shots:
        splits["train"] = _rows(data, "gsm8k_train")
    config = LightevalTaskConfig(
        name="gsm8k",
        prompt_function=gsm8k_prompt,
        hf_repo="local",
        hf_subset="main",
        hf_avail_splits=list(splits),
        evaluation_splits=["test"],
        few_shots_split="train" if recipe.shots else None,
        few_shots_select="random_sampling_from_train" if recipe.shots else None,
        generation_size=recipe.max_new_tokens,
        metrics=[Metrics.expr_gold_metric],
        stop_sequence=["Question:"],
    )
    yield config, splits


def _gpqa(recipe: TaskRecipe, data: Path):
    from lighteval.tasks.tasks.gpqa import gpqa_instruct_prompt

    config = LightevalTaskConfig(
        name="gpqa_diamond",
        prompt_function=gpqa_instruct_prompt,
        hf_repo="local",
        hf_subset="gpqa_diamond",
        hf_avail_splits=["train"],
        evaluation_splits=["train"],
        generation_size=recipe.max_new_tokens,
        metrics=[Metrics.gpqa_instruct_metric],
    )
    yield config, {"train": _rows(data, "gpqa_diamond", recipe.limit)}


def _mmlu(recipe: TaskRecipe, data: Path):
    from lighteval.tasks.tasks.mmlu import mmlu_prompt

    rows = _rows(data, "mmlu", recipe.limit)
    dev = _rows(data, "mmlu_dev") if recipe.shots else []
    for subject in sorted({row["subject"] for row in rows}):
        config = LightevalTaskConfig(
            name=f"mmlu:{subject}",
            prompt_function=cloze_prompt if recipe.formulation == "cloze" else mmlu_prompt,
            hf_repo="local",
            hf_subset=subject,
            hf_avail_splits=["dev", "test"],
            evaluation_splits=["test"],
            few_shots_split="dev",
            few_shots_select="sequential",
            metrics=[Metrics.loglikelihood_acc],
        )
        yield (
            config,
            {
                "test": [row for row in rows if row["subject"] == subject],
                "dev": [row for row in dev if row["subject"] == subject],
            },
        )


def _ifeval(recipe: TaskRecipe, data: Path):
    from scalpel.evaluation.sentences import provide_punkt

    provide_punkt()
    import langdetect
    from lighteval.tasks.tasks.ifeval.main import ifeval_metrics, ifeval_prompt

    langdetect.DetectorFactory.seed = 0  # it guesses with random numbers of its own

    config = LightevalTaskConfig(
        name="ifeval",
        prompt_function=ifeval_prompt,
        hf_repo="local",
        hf_subset="default",
        hf_avail_splits=["train"],
        evaluation_splits=["train"],
        generation_size=recipe.max_new_tokens,
        metrics=[ifeval_metrics],
    )
    rows = [row | {"kwargs": json.loads(row["kwargs__json"])} for row in _rows(data, "ifeval", recipe.limit)]
    yield config, {"train": rows}


BUILDERS = {
    "math_500": _math("math_500"),
    "aime24": _math("aime24"),
    "gsm8k": _gsm8k,
    "gpqa_diamond": _gpqa,
    "mmlu": _mmlu,
    "ifeval": _ifeval,
}


def documents(tasks: dict[str, LocalTask]) -> dict[str, list[Doc]]:
    """LightEval's documents of every task. Its GPQA prompt shuffles choices with the global generator: seeded."""
    random.seed(1234)
    return {name: task.get_docs() for name, task in tasks.items()}
