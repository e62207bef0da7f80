"""KL(base || checkpoint) in nats on one dataset's problems and solutions (paper section 4.1).

Which positions count. A conversation of T tokens (system prompt, problem, solution, EOS; scalpel/chat.py)
has T positions, each with a distribution over the next token. `kl` is the mean over all T of them, the one
after EOS included: the authors' code (experiments/kl_tests.py of Neelectric/open-r1_olmo) takes every
logit. `kl_solution` is the mean over those positions alone whose next token belongs to the assistant's turn
(the solution and its EOS): training on the whole sequence memorises the constant system prompt, which
weighs on the first number and not on the second. The figure's value of a checkpoint is the unweighted mean
over the questions.

The authors ran the models and the softmax in bfloat16; here both are float32, over the full vocabulary.
Final hidden states of the base model are kept (T x hidden floats a question) and logits are made from
them `chunk` positions at a time, so that no logits of a whole sequence are ever held.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalpel.chat import control_text, holds, load_tokenizer, render
from scalpel.config.analysis import KLRecipe, KLSettings
from scalpel.errors import UserError
from scalpel.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Question(NamedTuple):
    """A rendered conversation: its row in the file, its token ids, and where the assistant's turn begins."""

    row: int
    ids: list[int]
    solution_start: int  # index of the first token of the assistant's turn; EOS ends the turn


def kl(
    base: Path,
    checkpoints: list[tuple[int, Path]],
    questions: Path,
    recipe: KLRecipe,
    settings: KLSettings,
    out: Path,
    rendered_by: Path | None = None,
) -> None:
    """Write out/kl.parquet: step, question, positions, solution_positions, kl, kl_solution; and out/notes.json.

    questions: parquet file with text columns problem and solution; `question` is the row in it.
    rendered_by: the model whose chat template renders them, for the base model and the checkpoints alike; None: `base`.
    A conversation longer than recipe.max_tokens is never cut: it is left out, and its row stands in notes.json.
    Raises UserError for unreadable questions, a damaged checkpoint, or one of another vocabulary.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from scalpel.weights import default_device, load_model

    torch.set_num_threads(settings.threads)
    device = default_device()
    asked, too_long, planted = read_questions(questions, rendered_by or base, recipe)
    batches = by_length(asked, settings.batch_tokens)

    model = load_model(base, "float32", device)
    refuse_other_logits(model, base, asked[0])
    base_head = model.get_output_embeddings()
    base_hidden = [hidden_states(model, batch).cpu() for batch in track(batches, "base model, batch")]
    del model

    rows = []
    for step, path in track(checkpoints, "KL, checkpoint"):
        model = load_model(path, "float32", device)
        head = model.get_output_embeddings()
        if head.weight.shape != base_head.weight.shape:
            raise UserError(
                f"{path}: its lm_head has shape {list(head.weight.shape)}, the base model's "
                f"{list(base_head.weight.shape)}; the checkpoint is not one of this base model."
            )
        refuse_other_logits(model, path, asked[0])
        for batch, original in zip(batches, base_hidden, strict=True):
            values = kl_of_positions(original.to(device), base_head, hidden_states(model, batch), head, settings.chunk)
            end = 0
            for question in batch:
                begin, end = end, end + len(question.ids)
                rows.append((step, question, values[begin:end]))
                if not torch.isfinite(values[begin:end]).all():
                    raise UserError(f"{path}: its KL on row {question.row} of {questions} is not finite; "
                                    "the checkpoint holds NaN or infinite weights.")  # fmt: skip
        del model, head

    records = []
    for step, question, values in sorted(rows, key=lambda row: (row[0], row[1].row)):
        solution = values[question.solution_start - 1 : -1]
        means = (float(values.mean()), float(solution.mean()))
        records.append((step, question.row, len(values), len(solution), *means))
    columns = {
        "step": pa.int64(),
        "question": pa.int64(),
        "positions": pa.int64(),
        "solution_positions": pa.int64(),
        "kl": pa.float64(),
        "kl_solution": pa.float64(),
    }
    table = pa.table([[record[i] for record in records] for i in range(len(columns))], schema=pa.schema(columns))
    pq.write_table(table, out / "kl.parquet", compression="zstd")
    notes = {"questions": len(asked), "max_tokens": recipe.max_tokens, "rows_left_out_as_too_long": too_long}
    notes |= {"rows_left_out_for_special_tokens": planted} if planted else {}
    (out / "notes.json").write_text(json.dumps(notes, indent=1) + "\n")


def read_questions(path: Path, model: Path, recipe: KLRecipe) -> tuple[list[Question], list[int], list[int]]:
    """Conversations of the first recipe.prompts rows, rendered by the model's template; the rows that exceed
    recipe.max_tokens, and those that hold the text of a special token, which would become one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["problem", "solution"])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise UserError(f"{path} is no readable parquet file with columns problem and solution.") from None
    if set(table.column_names) != {"problem", "solution"}:
        raise UserError(f"{path} lacks the column problem or solution; KL needs both.")
    tokenizer = load_tokenizer(model)
    control = control_text(tokenizer)
    kept, too_long, planted = [], [], []
    for row, item in enumerate(table.slice(0, recipe.prompts).to_pylist()):
        if not isinstance(item["problem"], str) or not isinstance(item["solution"], str):
            raise UserError(f"{path}: row {row} has no text in problem or solution.")
        question = tokenised(tokenizer, row, item["problem"], item["solution"])
        if holds(control, item):
            planted.append(row)
        elif len(question.ids) > recipe.max_tokens:
            too_long.append(row)
        else:
            kept.append(question)
    if not kept:
        raise UserError(f"{path}: no conversation has at most {recipe.max_tokens} tokens; raise kl.max_tokens.")
    return kept, too_long, planted


def tokenised(tokenizer: PreTrainedTokenizerBase, row: int, problem: str, solution: str) -> Question:
    """The ids of scalpel.chat.token_ids, and the first token that reaches into the assistant's turn."""
    text = render(tokenizer, problem, solution)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = len(render(tokenizer, problem))  # a character: a token may straddle the boundary
    first = next(i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > start)
    return Question(row, encoded["input_ids"], first)


def by_length(questions: list[Question], batch_tokens: int) -> list[list[Question]]:
    """Batches of like length, longest first, of at most `batch_tokens` tokens with padding (one question at least)."""
    batches: list[list[Question]] = []
    for question in sorted(questions, key=lambda q: (-len(q.ids), q.row)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].ids) <= batch_tokens:
            batches[-1].append(question)
        else:
            batches.append([question])
    return batches


def hidden_states(model: PreTrainedModel, batch: list[Question]) -> Tensor:
    """Final hidden states of all real positions of a batch, (sum of lengths) x hidden, question after question.

    Padding stands on the right, where causal attention never looks from a real position: no mask is needed.
    """
    import torch

    longest = max(len(question.ids) for question in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    real = torch.zeros(len(batch), longest, dtype=torch.bool)
    for i, question in enumerate(batch):
        ids[i, : len(question.ids)] = torch.tensor(question.ids)
        real[i, : len(question.ids)] = True
    with torch.inference_mode():
        states = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
        return states[real.to(model.device)]


def refuse_other_logits(model: PreTrainedModel, path: Path, question: Question) -> None:
    """UserError for a model whose logits are not its head's product with the final hidden states (Granite scales them,
    Gemma-2 caps them): its KL would be wrong without a sign of it."""
    import torch

    hidden = hidden_states(model, [question._replace(ids=question.ids[:16])])
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([question.ids[:16]], device=model.device), use_cache=False).logits[0]
        ours = model.get_output_embeddings()(hidden)
    if not torch.allclose(
        torch.log_softmax(ours, -1), torch.log_softmax(theirs.float(), -1), atol=1e-3, rtol=1e-3, equal_nan=True
    ):
        raise UserError(f"{path}: its logits are not lm_head's product with the final hidden states, as in models that "
                        "scale or cap them; their KL is not measured: leave KL out of the study.")  # fmt: skip


def kl_of_positions(base_hidden: Tensor, base_head: Module, hidden: Tensor, head: Module, chunk: int) -> Tensor:
    """KL(base || checkpoint) of every position, float64 on the CPU, from final hidden states (positions x hidden).

    Sum over the vocabulary of p (log p - log q) + q - p, both log_softmax in float32. The last two terms sum to
    nothing in exact arithmetic; in float32 they cancel the rounding of the two normalisers, which otherwise
    is 1e-7 a position and as large as the KL of an early GRPO checkpoint. No summand is below zero either.
    """
    import torch

    values = []
    with torch.inference_mode():
        for start in range(0, len(hidden), chunk):
            log_p = torch.log_softmax(base_head(base_hidden[start : start + chunk]), dim=-1)
            log_q = torch.log_softmax(head(hidden[start : start + chunk]), dim=-1)
            difference = log_p - log_q
            p, q = log_p.exp_(), log_q.exp_()
            terms = difference.mul_(p).add_(q.sub_(p))
            values.append(terms.sum(dim=-1).clamp_(min=0).double().cpu())  # a last bit may be below zero
    return torch.cat(values)
