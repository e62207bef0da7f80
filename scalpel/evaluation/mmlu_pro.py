"""MMLU-Pro by lm-eval: its own ``leaderboard_mmlu_pro`` (5-shot log-likelihood, acc) over local parquet.

lm-eval cuts prompts from the left beyond the model's length; it is given room for the longest prompt, and
prompts beyond the model's positions are counted.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.config import TaskRecipe
from scalpel.errors import UserError
from scalpel.evaluation.engine import Engine

NAME = "scalpel_mmlu_pro"
ROOM = 1 << 17  # tokens: longer than any prompt of the benchmark


class MMLUPro:
    def __init__(self, recipe: TaskRecipe, data: Path, engine: Engine, folder: Path):
        """folder: where the task's YAML is written; it may be temporary."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        for name in ("mmlu_pro", "mmlu_pro_dev"):
            if not (data / f"{name}.parquet").is_file():
                raise UserError(f"evaluation.tasks: mmlu_pro needs evaluation_files.files.{name}, which was not given.")
        self.recipe, self.engine = recipe, engine
        packaged = Path(lm_eval.__file__).parent / "tasks" / "leaderboard" / "mmlu_pro"
        original = next(packaged.glob("*mmlu_pro.yaml"))
        if recipe.formulation == "cloze":
            data = _spaced(data, folder)
        (folder / f"{NAME}.yaml").write_text(_task_yaml(original, data, recipe))
        self.manager = TaskManager(include_path=str(folder), include_defaults=False)
        self.wrapper = HFLM(
            pretrained=engine.model,
            tokenizer=engine.tokenizer,
            batch_size=engine.settings.batch_size,
            max_length=ROOM,
            add_bos_token=False,
        )

    def evaluate(self) -> list[dict]:
        """One row per question: question, prompt, completion (the chosen option), gold, score, log-likelihoods."""
        from lm_eval import simple_evaluate

        results = simple_evaluate(
            model=self.wrapper,
            tasks=[NAME],
            task_manager=self.manager,
            num_fewshot=self.recipe.shots,
            limit=self.recipe.limit,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=self.engine.recipe.seed,
            numpy_random_seed=self.engine.recipe.seed,
            torch_random_seed=self.engine.recipe.seed,
            fewshot_random_seed=self.engine.recipe.seed,
            verbosity="ERROR",
        )
        rows = []
        for sample in results["samples"][NAME]:
            requests = sample["arguments"]
            requests = list(requests.values()) if isinstance(requests, dict) else requests
            pairs = [tuple(r.values())[:2] if isinstance(r, dict) else tuple(r)[:2] for r in requests]
            scores = [float(response[0]) for response in sample["filtered_resps"]]
            best = max(range(len(scores)), key=scores.__getitem__)
            gold = sample["doc"]["answer_index"]
            if len(self.engine.tok_encode(pairs[gold][0] + pairs[gold][1])) > self.engine.max_length:
                self.engine.beyond_positions["mmlu_pro"] += 1
            rows.append(
                {
                    "question": sample["doc_id"],
                    "prompt": pairs[best][0],
                    "completion": pairs[best][1],
                    "gold": pairs[gold][1],
                    "score": float(sample["acc"]),
                    "choice_logprobs": scores,
                }
            )
        return sorted(rows, key=lambda row: row["question"])


def _spaced(data: Path, folder: Path) -> Path:
    """Copies of the question files whose options begin with a blank: lm-eval adds none after a chat template."""
    for name in ("mmlu_pro", "mmlu_pro_dev"):
        rows = pq.read_table(data / f"{name}.parquet").to_pylist()
        for row in rows:
            row["options"] = [f" {option}" for option in row["options"]]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def _task_yaml(original: Path, data: Path, recipe: TaskRecipe) -> str:
    lines = [
        f"include: {original}",
        f"task: {NAME}",
        "dataset_path: parquet",
        "dataset_kwargs:",
        "  data_files:",
        f"    test: {(data / 'mmlu_pro.parquet').resolve()}",
        f"    validation: {(data / 'mmlu_pro_dev.parquet').resolve()}",
    ]
    if recipe.formulation == "cloze":
        lines += [
            'doc_to_text: "Question: {{question}}\\nAnswer:"',
            "doc_to_choice: options",
            "doc_to_target: answer_index",
        ]
    return "\n".join(lines) + "\n"
