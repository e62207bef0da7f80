"""Which tasks a question set allows: asked when a run is planned, and again of the laid-out set by the harness.

Nothing here imports a harness, pyarrow or torch.
"""

from __future__ import annotations

from string import Formatter
from typing import Any

from scalpel.config.evaluation import TaskRecipe
from scalpel.errors import UserError

LM_EVAL = "lm_eval"
CHOICES = ("mmlu", "mmlu_pro", "choice")  # formats scored by log-likelihood of choices, unless a letter is written
WITH_SOLUTIONS = ("math", "aime")  # formats whose rows have a problem and a solution: KL reads both
INSTRUCTION = "instruction"  # LightEval's own words in front of a question, where it has some
COLUMNS: dict[str, tuple[str, ...]] = {  # of a laid-out row, which a task's `prompt` may name
    "math": ("problem", "solution", "answer"),
    "aime": ("problem", "solution", "answer"),
    "gsm8k": ("question", "answer"),
    "gpqa": (
        "Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "choices",
    ),
    "mmlu": ("question", "subject", "choices", "answer"),
    "mmlu_pro": ("question", "options", "answer", "category", "answer_index", "question_id"),
    "ifeval": ("prompt", "instruction_id_list", "kwargs__json", "kwargs"),
    "exact_match": ("question", "answer"),
    "choice": ("question", "choices", "answer"),
}  # fmt: skip


def check_task(name: str, task: TaskRecipe, form: str, examples: int | None) -> None:
    """UserError for a task that a set of this format does not allow. examples: that the set has; None: not known."""
    where = f"evaluation.tasks.{name}"
    if form == "facts":
        raise UserError(f"{where}: its question set is of facts, which only causal tracing reads; name another set.")
    if form == LM_EVAL:
        for field, default in (("samples", 1), ("formulation", "letters"), ("prompt", None), ("one_turn", False)):
            if getattr(task, field) != default:
                raise UserError(
                    f"{where}: `{field}` is the YAML's to say, since its question set is a task of lm-eval; leave it "
                    "out."
                )
        return
    if task.one_turn and form != "mmlu_pro":
        raise UserError(f"{where}: `one_turn` is for mmlu_pro; leave it out.")
    if task.formulation != "letters" and form not in CHOICES:
        raise UserError(f"{where}: `formulation` is for multiple choice; its question set has the format {form}.")
    written = task.formulation == "written"
    if task.samples != 1 and form in CHOICES and not written:
        raise UserError(f"{where}: `samples` is for what is answered in words; leave it out.")
    if written and (task.shots or task.one_turn):
        raise UserError(f"{where}: `formulation: written` goes without examples; leave `shots` and `one_turn` out.")
    if task.samples != 1 and form == "ifeval":
        raise UserError(f"{where}: IFEval judges one completion a question; leave `samples` out.")
    if examples is not None and examples < task.shots:
        raise UserError(
            f"{where}: {task.shots} shots need as many examples, its question set has {examples}; give it `examples`, "
            "or lower `shots`."
        )
    if task.prompt is not None:
        said = () if form == "mmlu_pro" else (INSTRUCTION,)
        check_prompt(task.prompt, COLUMNS[form] + said, where)


def check_prompt(template: str, columns: tuple[str, ...], where: str) -> None:
    """UserError when the template cannot be filled in with the columns."""
    try:
        fields: list[tuple[str, Any, str | None, str | None]]
        fields = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{where}.prompt: {error}; a brace that is text is written twice.") from None
    for _, field, layout, conversion in fields:
        if field not in columns or layout or conversion:
            text = field + (f"!{conversion}" if conversion else "") + (f":{layout}" if layout else "")
            raise UserError(
                f"{where}.prompt: {{{text}}} cannot be filled in; its question set has {', '.join(columns)}, and a "
                "brace that is text is written twice."
            )
