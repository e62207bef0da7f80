"""Tasks of lm-eval: laid out as a question set that needs nothing else, and run by lm-eval itself on an engine.

The set holds the questions as questions.parquet, few-shot examples as examples.parquet, and task.json: the YAML with
its includes laid in and the Python modules its functions stand in. Paths are filled in when the task is loaded, so
results may be moved. The chat template is applied, as for every benchmark here, and few-shot examples are turns of
their own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.chat import holds
from scalpel.config.evaluation import TaskRecipe
from scalpel.data.tables import read_rows
from scalpel.errors import UserError
from scalpel.evaluation.grading import HARNESS_SECONDS, bound_process_results
from scalpel.evaluation.lm_eval_files import dump, evaluated_split, fewshot_split, parse
from scalpel.evaluation.question_set import EXAMPLES, QUESTIONS, QuestionSet
from scalpel.evaluation.quiet import quiet
from scalpel.grading.children import Children, Raised

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from scalpel.evaluation.lm_eval_engine import LMEvalEngine

TASK = "task.json"
BOOTSTRAP = 1000  # resamplings for the standard error of metrics that are no mean


def lay_out(recipe: dict, files: dict[str, Path], out: Path) -> tuple[list[str], dict]:
    """Write a task's files to `out`; returns (texts of the questions, notes). UserError when lm-eval cannot load it."""
    config = parse(recipe["yaml"])
    asked, shown = evaluated_split(config), fewshot_split(config)
    _copy(files[cast(str, asked)], out / QUESTIONS)
    if shown in files and shown != asked:
        _copy(files[shown], out / EXAMPLES)
    task = {"task": recipe["task"], "yaml": recipe["yaml"], "code": recipe["code"]}
    (out / TASK).write_text(json.dumps(task, indent=1, ensure_ascii=False) + "\n")
    with tempfile.TemporaryDirectory(prefix="scalpel_") as folder, quiet():
        os.environ.setdefault("HF_DATASETS_CACHE", folder)
        loaded = load_task(out, 0, Path(folder))
        docs = list(loaded.eval_docs)
        text = [_question(loaded, doc) for doc in docs]
    examples = pq.read_metadata(out / EXAMPLES).num_rows if (out / EXAMPLES).is_file() else 0
    return text, {"task": recipe["task"], "questions": len(docs), "examples": examples}


def _copy(path: Path, target: Path) -> None:
    if path.suffix == ".parquet":
        shutil.copyfile(path, target)
    else:
        pq.write_table(pa.Table.from_pylist(read_rows(path, nested=True)), target, compression="zstd")


def _question(task: Task, doc: dict) -> str:
    """What decontamination compares: the question as it is asked, with all of the row where that is no text."""
    with contextlib.suppress(Exception):  # the task's own code
        text = task.doc_to_text(doc)
        if isinstance(text, str):
            return text
    return "\n".join(value for value in doc.values() if isinstance(value, str))


def load_task(directory: Path, shots: int, folder: Path, legible: QuestionSet | None = None) -> Task:
    """lm-eval's task object of a laid-out set; shots: 0 for the YAML's own number.

    folder: where the YAML is put together for lm-eval. legible: whose rows are taken, if not all. Raises
    UserError when lm-eval cannot load it.
    """
    from lm_eval.tasks import TaskManager

    stored = json.loads((directory / TASK).read_text())
    name, config = stored["task"], parse(stored["yaml"])
    asked, shown = evaluated_split(config), fewshot_split(config)
    rows = _legible(legible, folder) if legible and legible.control else directory
    data = {"test": str((rows / QUESTIONS).resolve())}
    for field in ("training_split", "validation_split", "fewshot_split"):
        config.pop(field, None)
    if isinstance(config.get("fewshot_config"), dict):
        config["fewshot_config"].pop("split", None)
    if (directory / EXAMPLES).is_file():
        data["train"] = str((rows / EXAMPLES).resolve())
        config["fewshot_split"] = "train"
    elif shown == asked:
        config["fewshot_split"] = "test"
    count = shots or config.get("num_fewshot") or 0
    if count and shown is not None and "fewshot_split" not in config:
        raise UserError(
            f"{directory}: task {name} needs {count} few-shot examples of split {shown!r}; give `files.{shown}` to its "
            "question set."
        )
    config |= {"test_split": "test", "num_fewshot": count, "dataset_path": "parquet"}
    config["dataset_kwargs"] = {"data_files": data}
    folder = folder / f"task_{name}"
    folder.mkdir()
    for file, text in stored["code"].items():
        (folder / file).write_text(text)
    (folder / "task.yaml").write_text(dump(config))
    try:
        return TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    except Exception as error:  # lm-eval and the task's own code raise anything
        text = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(
            f"{directory}: lm-eval cannot load task {name} ({type(error).__name__}: {text}); correct its YAML or data."
        ) from error


def _legible(questions: QuestionSet, folder: Path) -> Path:
    """Where the rows lie: the set's own directory unless some are left out."""
    assert questions.control is not None
    found = questions.directory
    for name in (QUESTIONS, EXAMPLES):
        if (questions.directory / name).is_file():
            table = pq.read_table(questions.directory / name)
            kept = [not holds(questions.control, row) for row in table.to_pylist()]
            if found is folder or not all(kept):
                if found is not folder and name == EXAMPLES:
                    shutil.copyfile(questions.directory / QUESTIONS, folder / QUESTIONS)
                found = folder
                pq.write_table(table.filter(pa.array(kept)), folder / name)
    return found


class LMEvalTask:
    """One task on an engine, run again for every checkpoint. `scores` are lm-eval's own, of the last one."""

    def __init__(self, name: str, recipe: TaskRecipe, questions: QuestionSet, model: LMEvalEngine, folder: Path):
        """model: an LMEvalEngine. folder: temporary files of the harness."""
        folder = folder / f"lm_eval_{name}"
        folder.mkdir()
        self.name, self.recipe, self.model = name, recipe, model
        self.task = load_task(questions.directory, recipe.shots, folder, questions)
        self.task.set_fewshot_seed(seed=model.seed)
        self.scores: list[dict] = []
        self.not_graded: Counter[str] = Counter()

    def evaluate(self) -> list[dict]:
        """Rows of samples.parquet: one per question, metric and filter."""
        from lm_eval import evaluate

        self.model.task, self.model.max_tokens = self.name, self.recipe.max_new_tokens
        own = self.task.task_name
        with self._bounded():
            results = evaluate(
                self.model,
                {"tasks": {own: self.task}, "groups": {}, "group_map": {}},
                limit=self.recipe.limit,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                log_samples=True,
                bootstrap_iters=BOOTSTRAP,
            )
        self.task._instances = None  # built again, without answers, for the next checkpoint
        samples = results["samples"][own]
        questions = len({sample["doc_id"] for sample in samples})
        self.scores = [
            {
                "task": self.name,
                "metric": _metric(*key.split(",", 1)),
                "value": float(value),
                "stderr": _number(results["results"][own].get(f"{key.replace(',', '_stderr,', 1)}")),
                "questions": questions,
                "samples": questions,
            }
            for key, value in results["results"][own].items()
            if "," in key and "_stderr," not in key
        ]
        return [row for sample in sorted(samples, key=lambda s: s["doc_id"]) for row in self._rows(sample)]

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        """Score what a model wrote in a bounded child; log-likelihoods are numbers of our own and need none."""
        self.not_graded = Counter()
        if self.task.OUTPUT_TYPE != "generate_until":
            yield
            return
        own = self.task.process_results
        with Children(lambda pair: own(*pair), HARNESS_SECONDS, count=1) as child:
            lost = bound_process_results(self.task, child)
            try:
                yield
            except Raised as error:
                raise UserError(f"evaluation.tasks.{self.name}: its scoring fails ({error}); see its YAML.") from error
            finally:
                del self.task.process_results
                self.not_graded = lost()

    def _rows(self, sample: dict) -> Iterator[dict]:
        pairs, target = sample["arguments"], sample["target"]
        common = {"task": self.name, "group": self.name, "question": sample["doc_id"], "sample": 0}
        if self.task.OUTPUT_TYPE == "generate_until":
            common |= {"prompt": pairs[0][0], "completion": sample["resps"][0][0], "gold": str(target)}
        else:
            values = [float(response[0]) for response in sample["filtered_resps"]]
            best = max(range(len(values)), key=values.__getitem__)
            gold = pairs[target][1] if isinstance(target, int) and 0 <= target < len(pairs) else str(target)
            common |= {"prompt": pairs[best][0], "completion": pairs[best][1], "gold": gold, "choice_logprobs": values}
        for metric in sample["metrics"]:
            yield common | {"metric": _metric(metric, sample["filter"]), "score": _number(sample[metric])}


def _metric(metric: str, kind: str) -> str:
    """lm-eval's name of a metric, with its filter's where a task has filters."""
    return metric if kind == "none" else f"{metric},{kind}"


def _number(value: Any) -> float | None:
    """A float; None for what is no number: lm-eval's ``N/A``, and samples of metrics of the whole."""
    if isinstance(value, (bool, int, float)) or hasattr(value, "item"):
        number = float(value)
        return number if math.isfinite(number) else None
    return None
