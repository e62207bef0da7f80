"""Training rows: where they come from, which are kept, in which order they are asked, and answers of a model's own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from scalpel.config.types import (
    Commit,
    Few,
    Fraction,
    Location,
    Name,
    Positive,
    Recipe,
    Repository,
    Seed,
    Strict,
    Tokens,
    Whole,
    later,
)


class ToySource(Strict):
    kind: Literal["toy"] = "toy"


class Columns(Strict):
    """Which columns files have in place of OpenR1-Math-220k's.

    `columns` maps one of OpenR1-Math-220k's column names to a column of the file, or a place inside one;
    `constants` gives a column one value for all rows, e.g. ``{source: cn_k12}``.
    """

    columns: dict[str, str] = {}
    constants: dict[str, Any] = {}
    boxed_answer_of: str | None = None  # column whose last \\boxed{...} is the answer


class ParquetSource(Columns):
    """A parquet file with OpenR1-Math-220k's columns, or others that `columns` maps."""

    kind: Literal["parquet"]
    path: Location


class HubDataset(Strict):
    kind: Literal["hub"]
    repo: Repository
    revision: Commit
    files: Annotated[list[str], Field(min_length=1)]  # patterns of paths inside the repository


class HubRows(Columns, HubDataset):
    """Training rows of the hub. revision: None while nobody has named a commit, which fetching then asks for."""

    revision: Commit | None = None  # type: ignore[assignment]


class GitHubFile(Strict):
    """A file of a public GitHub repository at a commit, by its path there, and the sha256 it must have."""

    kind: Literal["github"]
    repo: Repository
    revision: Commit
    path: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)*\.(parquet|jsonl|json|csv)$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Source = Annotated[ToySource | ParquetSource | HubRows, Field(discriminator="kind")]


class FilterRecipe(Recipe):
    """Which rows are trained on, with which trace and which answer.

    Of the paper (section 3.1, appendix A): the source, the cap of 4096 tokens, and that rows were verified.
    Completeness, duplicates, decontamination and unparsable answers are ours; each can be switched off.
    """

    source: str | None = "cn_k12"  # the value wanted in column `source`; None: any
    max_tokens: Tokens | None = 4096  # of the rendered conversation: system prompt, question, trace, EOS; None: any
    # Words of a run that a question may not share with an evaluation question; a shorter question is compared whole.
    decontamination_ngram: Annotated[int, Field(gt=0, le=1000)] | None = 13  # None: no comparison
    # Who must have found a generation right. The paper's text: math-verify and a Llama judge; its code: none.
    verified_by: Literal["math_verify", "math_verify_or_llama", "math_verify_and_llama", "none"] = "math_verify"
    require_complete: bool = True  # is_reasoning_complete of the chosen trace
    unparsable_answer: Literal["stop", "drop", "keep"] = "stop"  # a row whose answer math-verify cannot parse
    max_prompt_tokens: Tokens | None = None  # None: no cap of its own
    duplicates: Literal["drop", "keep"] = later("drop", as_before="drop")
    # first: the first generation that passes; messages: the assistant's turn of column `messages` (the authors').
    trace: Literal["first", "messages"] = later("first", as_before="first")
    # The column that completions are graded against. The authors' accuracy reward reads `solution`.
    gold: Literal["answer", "solution"] = later("answer", as_before="answer")
    most_rows: Positive | None = later(None, as_before=None)  # of those that pass, the first ones; None: all

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns it reads beside those that every filter reads."""
        return ("solution",) * (self.gold == "solution") + ("messages",) * (self.trace == "messages")


class Dataset(Strict):
    """Rows to train on: a source, a filter, and the question sets that no row may overlap with."""

    source: Source = ToySource()
    filter: FilterRecipe = FilterRecipe()
    guard: tuple[Name, ...] | None = None  # question sets; None: the scale's


class OrderRecipe(Recipe):
    """The one question order all methods follow: `epochs` permutations of the kept rows, in a row.

    `seed` is the run's: everything random in a run's training follows the seed of its order.
    """

    seed: Seed
    epochs: Few = 3


class GenerateRecipe(Recipe):
    """A model's own answers to the kept questions; the verified ones take the traces' place (stage generate)."""

    samples: Annotated[int, Field(gt=0, le=4096)] = 4  # answers a question, of which the first verified one is kept
    max_new_tokens: Tokens = 1500
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Fraction = 1.0
    seed: Whole = 0  # added to the run's
    inference: Literal["transformers", "vllm"] = "transformers"
