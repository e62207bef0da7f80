"""Every place where something of your own goes: python -m scripts.extend

For each: what there is, the file to begin with, and what else to touch. All of it is read from the code and the
workflow, so that what it lists is what there is.
"""

import textwrap
from typing import Any, NamedTuple, get_args

from scalpel import claims, exhibits
from scalpel.artifact.files import ROOT
from scalpel.config.data import GitHubFile, HubDataset, Source
from scalpel.config.evaluation import QuestionSet
from scalpel.config.models import Given, Model
from scalpel.evaluation.formats import FORMATS
from scalpel.methods import METHODS
from scalpel.methods.tracking import PACKAGES
from scalpel.program import end_with
from scalpel.stages import STAGES


class Point(NamedTuple):
    """One kind of thing that can be added. start: files to look at; then: what else there is to do."""

    what: str
    there: list[str]
    start: list[str]
    then: str


def modules(folder: str, without: tuple[str, ...] = ()) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.py") if path.stem not in ("__init__", *without))


def names(folder: str, suffix: str = "yaml") -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob(f"*.{suffix}"))


def kinds(*unions: Any) -> list[str]:
    """What may stand as `kind` in one of these unions of the typed configuration, or in one of these classes."""
    found: list[str] = []
    for union in unions:
        if hasattr(union, "model_fields"):
            found += get_args(union.model_fields["kind"].annotation)
        else:
            found += kinds(*(part for part in get_args(union) if hasattr(part, "model_fields") or get_args(part)))
    return list(dict.fromkeys(found))


def points() -> list[Point]:
    """All of them."""
    return [
        Point("study", names("workflow/studies"), ["workflow/studies/scalpel_vs_hammer.yaml"],
              "a file of your own: `studies: [mine.yaml]` in config.yaml; `extends` takes another study's runs"),
        Point("scale", names("workflow/scales"), ["workflow/scales/laptop.yaml"],
              "its file's name in config.yaml's `scale`; `make schema` lets editors know it"),
        Point("as-published variant", names("workflow/as_published"), ["workflow/as_published/code.yaml"],
              "a file beside it, laid over the scale that it names: `as_published` in config.yaml"),
        Point("base model", kinds(Model), ["docs/real-data.md", "scalpel/config/models.py", "scalpel/base_model.py",
              "scalpel/plan/materials.py"],
              "a model on disk or of the hub needs no code: `models`, `model`; a new kind: a class and a step"),
        Point("source of training rows", kinds(Source),
              ["docs/real-data.md", "scalpel/config/data.py", "scalpel/data/sources.py", "scalpel/plan/materials.py"],
              "a parquet file or one of the hub needs no code: `datasets`, `dataset`; a new kind: a class and a step"),
        Point("source of questions", kinds(QuestionSet),
              ["docs/real-data.md", "scalpel/config/evaluation.py", "scalpel/evaluation/questions.py",
              "scalpel/plan/materials.py"],
              "a file or a task of lm-eval needs no code: `questions`; a new kind: a class and a step"),
        Point("place to fetch files from", kinds(HubDataset, GitHubFile),
              ["docs/real-data.md", "scalpel/config/data.py", "scalpel/fetch.py"],
              "these may stand wherever a file of questions may; a new kind: a class, and how it is read"),
        Point("checkpoints made elsewhere", kinds(Given),
              ["docs/real-data.md", "scalpel/config/models.py", "scalpel/given.py"],
              "a run with `given` in place of `method`; a new kind: a class, and how it is read"),
        Point("figure or table", modules("scalpel/exhibits", exhibits.SHARED),
              ["scalpel/exhibits/__init__.py", "scalpel/exhibits/kl.py"],
              "a file of your own and one line of a study: `kind: mine.py`"),
        Point("claims of a study", modules("scalpel/claims", claims.SHARED),
              ["scalpel/claims/judge.py", "scalpel/claims/scalpel_vs_hammer.py"],
              "a module of scalpel/claims, named by the study's `claims`"),
        Point("training method", sorted(METHODS), ["scalpel/methods/method.py", "scalpel/methods/sft.py",
              "scalpel/methods/sft_trainer.py"],
              "two files, and its name in scalpel/methods/__init__.py; then `method: <name>` of a run"),
        Point("benchmark", sorted(FORMATS), ["docs/real-data.md", "scalpel/evaluation/formats.py"],
              "a file of such a format, or a task of lm-eval, needs no code: `questions`, `evaluation.tasks`"),
        Point("chat template", names("scalpel/chat/templates", "jinja"),
              ["scalpel/chat/templates/scalpel_vs_hammer.jinja"],
              "a Jinja file, named by `models.<name>.chat_template`"),
        Point("stage of the DAG", list(STAGES), ["scalpel/stages.py", "scripts/kl.py", "scalpel/plan/runs.py",
              "workflow/rules/stages.smk"],
              "its line in scalpel/stages.py, its program in scripts/, its steps in the plan"),
        Point("published numbers", names("workflow/published"), ["workflow/published/scalpel_vs_hammer.yaml"],
              "a file of your own, named by the study's `published`"),
        Point("place for live curves", ["none", *PACKAGES], ["scalpel/methods/tracking.py"],
              "its branch there, and its name in scalpel/config/training.py; `tracking` in config.yaml"),
    ]  # fmt: skip


def main() -> int:
    for point in points():
        print(point.what)
        for title, text in (
            ("there", ", ".join(point.there)),
            ("begin at", ", ".join(point.start)),
            ("then", point.then),
        ):
            print(textwrap.fill(text, 110, initial_indent=f"  {title:9} ", subsequent_indent=" " * 12,
                                break_on_hyphens=False, break_long_words=False))  # fmt: skip
    return 0


if __name__ == "__main__":
    end_with(main)
