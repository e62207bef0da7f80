"""MMLU-Pro by lm-eval: its own ``leaderboard_mmlu_pro`` (5-shot log-likelihood, acc) over local parquet.

The harness makes prompts, few-shot examples and scores; `Wrapper` answers its log-likelihood requests with the
engine that LightEval uses, too. Prompts are never cut; those beyond the model's positions are counted.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.model import TemplateLM

from scalpel.config.evaluation import TaskRecipe
from scalpel.errors import UserError
from scalpel.evaluation.engine import Engine

NAME = "scalpel_mmlu_pro"


class Wrapper(TemplateLM):
    """lm-eval's model interface to the engine."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine, self.tokenizer = engine, engine.tokenizer

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return "scalpel"

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self.engine.encode([string])[0]

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As TemplateLM's: trailing space belongs to the continuation, whose ids are what the context's leave over.

        Contexts are encoded once for all their choices, and texts in batches.
        """
        pairs = []
        for request in requests:
            context, continuation = request.args
            bare = context.rstrip()
            pairs.append((bare, context[len(bare) :] + continuation))
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        ids = dict(zip(contexts, self.engine.encode(contexts), strict=True))
        encoded = []
        for start in range(0, len(pairs), 1000):
            part = pairs[start : start + 1000]
            for (context, _), whole in zip(part, self.engine.encode([a + b for a, b in part]), strict=True):
                encoded.append((ids[context], whole[len(ids[context]) :]))
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
        longest: dict[int, int] = {}
        for context, continuation in requests:
            longest[id(context)] = max(longest.get(id(context), 0), len(context) + len(continuation))
        if beyond := sum(n > self.engine.max_length for n in longest.values()):
            self.engine.beyond_positions["mmlu_pro"] += beyond
        return self.engine.loglikelihoods(requests)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        raise UserError("perplexity tasks are not part of the experiment; name a task of scalpel/config.py.")

    def generate_until(self, requests, disable_tqdm: bool = False):
        raise UserError("lm-eval's generative tasks are not part of the experiment; name a task of scalpel/config.py.")


class MMLUPro:
    def __init__(self, recipe: TaskRecipe, data: Path, engine: Engine, folder: Path):
        """folder: where the task's YAML is written; it may be temporary."""
        import lm_eval
        from lm_eval.tasks import TaskManager

        for name in ("mmlu_pro", "mmlu_pro_dev"):
            if not (data / f"{name}.parquet").is_file():
                raise UserError(f"evaluation.tasks: mmlu_pro needs evaluation_files.files.{name}, which was not given.")
        self.recipe = recipe
        packaged = Path(lm_eval.__file__).parent / "tasks" / "leaderboard" / "mmlu_pro"
        original = next(packaged.glob("*mmlu_pro.yaml"))
        if recipe.formulation == "cloze":
            data = _spaced(data, folder)
        (folder / f"{NAME}.yaml").write_text(_task_yaml(original, data, recipe))
        self.tasks = TaskManager(include_path=str(folder), include_defaults=False).load([NAME])
        self.tasks["tasks"][NAME].set_fewshot_seed(seed=engine.recipe.seed)
        self.wrapper = Wrapper(engine)

    def evaluate(self) -> list[dict]:
        """One row per question: question, prompt, completion (the chosen option), gold, score, log-likelihoods."""
        from lm_eval import evaluate

        results = evaluate(
            self.wrapper,
            self.tasks,
            limit=self.recipe.limit,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            log_samples=True,
            bootstrap_iters=0,
        )
        rows = []
        for sample in results["samples"][NAME]:
            pairs = sample["arguments"]
            scores = [float(response[0]) for response in sample["filtered_resps"]]
            best = max(range(len(scores)), key=scores.__getitem__)
            rows.append(
                {
                    "question": sample["doc_id"],
                    "prompt": pairs[best][0],
                    "completion": pairs[best][1],
                    "gold": pairs[sample["doc"]["answer_index"]][1],
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
        f"num_fewshot: {recipe.shots}",
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
