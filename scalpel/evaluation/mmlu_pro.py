"""MMLU-Pro by lm-eval: its own ``leaderboard_mmlu_pro`` (5-shot log-likelihood, acc) over a question set's rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.config.evaluation import TaskRecipe
from scalpel.evaluation.lighteval_tasks import filled_in
from scalpel.evaluation.lm_eval_engine import LMEvalEngine
from scalpel.evaluation.question_set import QuestionSet


class MMLUPro:
    def __init__(self, name: str, recipe: TaskRecipe, questions: QuestionSet, model: LMEvalEngine, folder: Path):
        """folder: where the task's YAML and rows are written; it may be temporary."""
        import lm_eval
        from lm_eval.tasks import TaskManager

        examples = questions.examples()
        self.name, self.recipe, self.model = name, recipe, model
        self.task = f"scalpel_{name}"
        folder = folder / self.task
        folder.mkdir()
        for split, rows in (("test", questions.rows(recipe.limit)), ("validation", examples)):
            if recipe.prompt is not None:
                rows = [row | {"asked": filled_in(recipe.prompt, row, name)} for row in rows]
            if recipe.formulation == "cloze":  # lm-eval adds no blank before a choice after a chat template
                rows = [row | {"options": [f" {option}" for option in row["options"]]} for row in rows]
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        packaged = Path(lm_eval.__file__).parent / "tasks" / "leaderboard" / "mmlu_pro"
        (folder / "task.yaml").write_text(self._yaml(next(packaged.glob("*mmlu_pro.yaml")), folder))
        self.tasks = TaskManager(include_path=str(folder), include_defaults=False).load([self.task])
        self.tasks["tasks"][self.task].set_fewshot_seed(seed=model.seed)

    def evaluate(self) -> list[dict]:
        """One row per question: question, prompt, completion (the chosen option), gold, score, log-likelihoods."""
        from lm_eval import evaluate

        self.model.task = self.name
        results = evaluate(
            self.model,
            self.tasks,
            apply_chat_template=True,
            fewshot_as_multiturn=not self.recipe.one_turn,
            log_samples=True,
            bootstrap_iters=0,
        )
        rows = []
        for sample in results["samples"][self.task]:
            pairs = sample["arguments"]
            scores = [float(response[0]) for response in sample["filtered_resps"]]
            best = max(range(len(scores)), key=scores.__getitem__)
            rows.append(
                {
                    "task": self.name,
                    "group": self.name,
                    "metric": "acc",
                    "sample": 0,
                    "question": sample["doc_id"],
                    "prompt": pairs[best][0],
                    "completion": pairs[best][1],
                    "gold": pairs[sample["doc"]["answer_index"]][1],
                    "score": float(sample["acc"]),
                    "choice_logprobs": scores,
                }
            )
        return sorted(rows, key=lambda row: row["question"])

    def _yaml(self, original: Path, folder: Path) -> str:
        quoted = {split: json.dumps(str((folder / f"{split}.parquet").resolve())) for split in ("test", "validation")}
        lines = [
            f"include: {json.dumps(str(original))}",
            f"task: {self.task}",
            f"num_fewshot: {self.recipe.shots}",
            "dataset_path: parquet",
            "dataset_kwargs:",
            "  data_files:",
            f"    test: {quoted['test']}",
            f"    validation: {quoted['validation']}",
        ]
        if self.recipe.formulation == "cloze":
            lines += [
                'doc_to_text: "Question: {{question}}\\nAnswer:"',
                "doc_to_choice: options",
                "doc_to_target: answer_index",
            ]
        if self.recipe.prompt is not None:
            lines += ["doc_to_text: asked"]
        return "\n".join(lines) + "\n"
