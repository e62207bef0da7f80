"""What runs are made from: base models, question sets, and the rows that are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scalpel import given
from scalpel.artifact.step import Step
from scalpel.chat import OWN, template_text
from scalpel.config.data import Columns, GitHubFile, HubDataset, HubRows, ParquetSource, ToySource
from scalpel.config.evaluation import FORMATS, TOY_DRAWN, FileQuestions, LMEvalQuestions, QuestionSet, ToyQuestions
from scalpel.config.load import nearest
from scalpel.config.models import HubModel, LocalModel, ToyModel
from scalpel.config.scale import Scale
from scalpel.errors import UserError
from scalpel.evaluation import lm_eval_files
from scalpel.evaluation.tasks import CHOICES
from scalpel.plan.steps import Steps
from scalpel.remembered import file_digest

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")  # one of them at least


class Materials:
    """Steps of a scale's models, question sets and datasets, by their names in it."""

    def __init__(self, scale: Scale, steps: Steps):
        self.scale, self.steps = scale, steps
        self.revisions = given.read_revisions(steps.root)

    def toy(self) -> Step:
        """The generated world."""
        return self.steps.add("toy", "world", self.scale.world.identity())

    def base(self, model: str) -> Step:
        """The base model of this name in the scale's `models`."""
        source = self.scale.models[model]
        form: dict[str, Any] = {"chat_template": template_text(source.chat_template, f"models.{model}.chat_template")}
        edits = {name: value for name, value in source.config_edits.identity().items() if value is not None}
        form |= {"config_edits": edits} if edits else {}
        if isinstance(source, ToyModel):
            recipe = {"kind": "toy"} | source.toy.identity() | form
            return self.steps.add("base", model, recipe, {"toy": self.toy()}, self.steps.threads("base"))
        if isinstance(source, HubModel):
            commit = given.resolved(source.repo, source.revision, self.revisions, f"models.{model}")
            fetched = self.fetch_model(model, source.repo, commit)
            return self.steps.add("base", model, {"kind": "fetched"} | form, {"fetch": fetched})
        assert isinstance(source, LocalModel)
        if not source.path.is_dir():
            raise UserError(f"models.{model}.path: {source.path} is not a directory; point it at a saved model.")
        own = source.chat_template == OWN
        kept = [*given.model_files(source.path, f"models.{model}.path"), *given.tokenizer_files(source.path, own)]
        files = {path.relative_to(source.path).as_posix(): file_digest(path) for path in kept}
        if not any((source.path / name).is_file() for name in TOKENIZERS):
            raise UserError(
                f"models.{model}.path: {source.path} holds no tokenizer ({', '.join(TOKENIZERS)}); save it there, too."
            )
        settings = {"path": str(source.path.resolve())}
        return self.steps.add("base", model, {"kind": "local", "files": files} | form, {}, settings)

    def fetch_model(self, name: str, repo: str, revision: str, files: tuple[str, ...] = ()) -> Step:
        """A model of the hub at a commit; or these files of it alone."""
        recipe = {"type": "model", "repo": repo, "revision": revision} | ({"files": list(files)} if files else {})
        return self.steps.add("fetch", name, recipe)

    def _fetch_dataset(self, name: str, source: HubDataset) -> Step:
        recipe = {"type": "dataset"} | source.model_dump(mode="json", include=set(HubDataset.model_fields) - {"kind"})
        return self.steps.add("fetch", name, recipe)

    def _file(
        self, role: str, where: str, source: Path | HubDataset | GitHubFile, name: str
    ) -> tuple[dict, dict, dict]:
        """(recipe, inputs, settings) by which a step reads a file of the user's, the hub or GitHub under `role`."""
        if isinstance(source, HubDataset):
            return {}, {f"fetch/{role}": self._fetch_dataset(name, source)}, {}
        if isinstance(source, GitHubFile):
            recipe = {"type": "github"} | source.model_dump(mode="json", exclude={"kind"})
            return {}, {f"fetch/{role}": self.steps.add("fetch", name, recipe)}, {}
        if not source.is_file():
            raise UserError(f"{where}: {source} does not exist; give the path of a file.")
        return {role: file_digest(source)}, {}, {role: str(source.resolve())}

    def questions(self, name: str) -> Step:
        """The question set of this name in the scale's `questions`."""
        source: QuestionSet = self.scale.questions[name]
        where = f"questions.{name}"
        if isinstance(source, ToyQuestions):
            return self.steps.add("questions", name, _of_toy(name, source, where), {"toy": self.toy()})
        recipe: dict = {"sha256": {}}
        inputs: dict[str, Step] = {}
        settings: dict = {"paths": {}}
        if isinstance(source, FileQuestions):
            form = source.format or FORMATS.get(name)
            if form is None:
                raise UserError(
                    f"{where}: give its `format` (a public dataset's own columns are known by the set's name: "
                    f"{', '.join(FORMATS)})."
                )
            recipe |= {"format": form} | ({"columns": source.columns} if source.columns else {})
            recipe |= _shuffle(source, form, where)
            files = {"questions": source.file} | ({"examples": source.examples} if source.examples else {})
        else:
            assert isinstance(source, LMEvalQuestions)
            task = lm_eval_files.find(source.lm_eval, source.files, where)
            recipe |= {"format": "lm_eval", "task": task.name, "yaml": task.text, "code": task.code}
            files = task.files
        for role, file in files.items():
            fetched = name if role == "questions" else f"{name}_{role}"
            hashes, steps, paths = self._file(role, f"{where}.{role}", file, fetched)
            recipe["sha256"] |= hashes
            inputs |= steps
            settings["paths"] |= paths
        return self.steps.add("questions", name, recipe, inputs, settings)

    def data(self, dataset: str, model: str, guard: tuple[str, ...]) -> Step:
        """The rows of a dataset that pass its filter, measured with this model's tokenizer and template."""
        source, base = self.scale.datasets[dataset], self.base(model)
        guard = guard if source.guard is None else source.guard
        inputs = {"base": base} | {f"questions/{name}": self.questions(name) for name in guard}
        recipe: dict = {"filter": source.filter.identity()}
        settings = {}
        if isinstance(source.source, ToySource):
            inputs["toy"] = self.toy()
            recipe["source"] = {"kind": "toy"}
        elif isinstance(source.source, HubRows):
            inputs["fetch"] = self._fetch_dataset(dataset, source.source)
            columns = source.source.model_dump(mode="json", include=set(Columns.model_fields), exclude_defaults=True)
            recipe["source"] = {"kind": "hub"} | columns
        else:
            assert isinstance(source.source, ParquetSource)
            recipe["source"] = source.source.model_dump(mode="json", exclude={"path"})
            path = source.source.path
            hashes, _, paths = self._file("path", f"datasets.{dataset}.source.path", path, dataset)
            recipe["source"]["sha256"] = hashes["path"]
            settings = paths
        return self.steps.add("data", dataset, recipe, inputs, settings)


def _shuffle(source: FileQuestions | ToyQuestions, form: str, where: str) -> dict[str, int]:
    """What a recipe says of the order of choices: nothing, or its seed."""
    if source.shuffle is not None and form not in CHOICES:
        raise UserError(f"{where}.shuffle: it is for multiple choice; the set's format is {form}: leave it out.")
    return {} if source.shuffle is None else {"shuffle": source.shuffle}


def _of_toy(name: str, source: ToyQuestions, where: str) -> dict[str, Any]:
    """The recipe of a set that is a file of the toy world, or drawn for itself (`count`)."""
    known = [*FORMATS, *TOY_DRAWN]
    if name not in known:
        raise UserError(f"{where}: the toy world has no questions of this name{nearest(name, known)}.")
    if (name in TOY_DRAWN) != (source.count is not None):
        way_out = f"only {', '.join(TOY_DRAWN)} are drawn" if source.count else "say how many questions are drawn"
        raise UserError(f"{where}.count: {way_out}.")
    if name not in TOY_DRAWN:
        return {"format": FORMATS[name], "toy": name} | _shuffle(source, FORMATS[name], where)
    form, columns = TOY_DRAWN[name]
    recipe: dict[str, Any] = {"format": form, "toy": name, "count": source.count}
    recipe |= {"columns": columns} if columns else {}
    return recipe | _shuffle(source, form, where)
