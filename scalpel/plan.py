"""Config -> every result with its recipe, digest, directory, inputs and gates. The Snakefile looks things up here.

Nothing here imports torch or writes, `Plan.freeze` aside, which the Snakefile calls when a run starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from scalpel import claims, exhibits, given
from scalpel.artifact.files import RECIPE, read_json, write_atomically
from scalpel.artifact.identity import digest_of
from scalpel.artifact.step import Step, freeze_recipe
from scalpel.chat import template_text
from scalpel.config.data import HubDataset, ParquetSource, ToySource
from scalpel.config.evaluation import FORMATS, FileQuestions, LMEvalQuestions, QuestionSet, ToyQuestions
from scalpel.config.load import freeze_config, nearest
from scalpel.config.models import HubCheckpoints, HubModel, LocalCheckpoints, LocalModel, ToyModel
from scalpel.config.scale import StageResources
from scalpel.config.study import Config, RunSpec, Study
from scalpel.config.types import BASE
from scalpel.errors import UserError
from scalpel.evaluation import lm_eval_files
from scalpel.methods import METHODS
from scalpel.remembered import file_digest
from scalpel.stages import EXHIBIT, REPORT, SHOWN, STAGES


@dataclass(frozen=True)
class Run:
    """One run of a study with one seed: where its checkpoints come from."""

    study: str
    name: str
    seed: int
    spec: RunSpec
    base: Step
    checkpoints: Step  # of stage train or given
    steps: tuple[int, ...] | None  # the checkpoints' optimizer steps; None: not known before training
    count: int  # of checkpoints
    start: Run | None = None
    answers: Step | None = None  # of stage generate: what it is trained on in place of traces

    @property
    def label(self) -> str:
        """In names of results: the run's name, and its seed where there are several."""
        return self.name if len(self.spec.seeds) == 1 else f"{self.name}.s{self.seed}"

    @property
    def chain(self) -> list[Step]:
        """What was spent before this run's own training: generated answers and earlier runs, the first one first."""
        before = [*self.start.chain, self.start.checkpoints] if self.start else []
        return [*before, *([self.answers] if self.answers else [])]


class Entry(NamedTuple):
    """One result as exhibits and claims see it: whose it is, and which part of it.

    part: the group of benchmarks, or the measure of KL. reference: what a checkpoint is compared with, base or start.
    """

    stage: str
    run: str
    seed: int
    step: Step
    part: str = ""
    shard: int = 1
    reference: str = BASE
    chain: tuple[Step, ...] = ()

    def identity(self) -> dict:
        """What enters the digest of an exhibit that shows it."""
        where = {"run": self.run, "seed": self.seed, "part": self.part, "shard": self.shard}
        return where | {
            "stage": self.stage,
            "reference": self.reference,
            "digest": self.step.digest,
            "chain": [step.digest for step in self.chain],
        }

    def frozen(self) -> dict:
        """What the exhibit's recipe file holds."""
        return self._asdict() | {"step": self.step.directory, "chain": [step.directory for step in self.chain]}


@dataclass(frozen=True)
class Drawing:
    """An exhibit or a report: stable file names, and a digest that changes when its content would."""

    study: str
    name: str
    recipe: dict
    entries: tuple[Entry, ...]
    files: tuple[str, ...]  # that it writes, below the working directory

    @property
    def digest(self) -> str:
        stage = REPORT if self.name == REPORT else EXHIBIT
        recipe = {"study": self.study, "name": self.name, **self.recipe, "of": [e.identity() for e in self.entries]}
        return digest_of(stage, SHOWN[stage], recipe, {})

    @property
    def folder(self) -> str:
        """Of its files: figures, tables or report."""
        return self.files[0].split("/")[1]

    @property
    def recipe_path(self) -> str:
        """Its recipe file: there while, and only while, the files show this very content."""
        return f"results/{self.folder}/{self.study}/recipes/{self.name}-{self.digest}.json"

    @property
    def manifests(self) -> list[str]:
        steps = {step.digest: step for entry in self.entries for step in (entry.step, *entry.chain)}
        return [step.manifest for step in steps.values()]

    def frozen(self) -> dict:
        return {
            "study": self.study,
            "name": self.name,
            "digest": self.digest,
            "recipe": self.recipe,
            "entries": [entry.frozen() for entry in self.entries],
            "files": self.files,
        }


class Plan:
    """All results of one config. `steps` holds them by digest, `entries` by study, `drawings` by (study, name)."""

    def __init__(self, config: Config, workflow: Path, root: Path = Path(".")):
        self.config, self.workflow, self.root = config, workflow, root
        self.steps: dict[str, Step] = {}
        self.runs: dict[tuple[str, str, int], Run] = {}
        self.entries: dict[str, list[Entry]] = {}
        self.drawings: dict[tuple[str, str], Drawing] = {}
        self._made: dict[str, dict[str, str]] = {}
        self._being_planned: list[tuple[str, str]] = []
        self._revisions = given.read_revisions(root)
        for study in config.studies:
            self.entries[study] = list(self._results(study))
        for study in config.studies:
            self._show(study)

    # ------------------------------------------------------------ steps

    def _step(
        self, stage: str, name: str, recipe: dict, inputs: dict[str, Step] | None = None, settings: dict | None = None,
        version: int | None = None, gates: dict[str, Step] | None = None,
    ) -> Step:  # fmt: skip
        """The step, or the one that is the same under another name: in this plan, or lying in results/."""
        gpus = self.resources_of_stage(stage).gpus
        settings = (settings or {}) | ({"gpus": gpus} if gpus else {})  # each job checks them first
        version = version or STAGES[stage].version
        step = Step(stage, name, version, recipe, inputs or {}, settings, gates or {})
        known = self.steps.get(step.digest)
        if known is None:
            made = self._names_on_disk(stage).get(step.digest)
            if made not in (None, name):
                step = Step(stage, made, version, recipe, inputs or {}, settings, gates or {})
            known = self.steps[step.digest] = step
        return known

    def _names_on_disk(self, stage: str) -> dict[str, str]:
        """Digest -> name of the results of a stage that lie in results/, finished ones first."""
        if stage not in self._made:
            found: dict[str, str] = {}
            for path in sorted(self.root.glob(f"results/{stage}/*-*/{RECIPE}")):
                name, _, digest = path.parent.name.rpartition("-")
                if digest not in found or (path.parent / "manifest.json").is_file():
                    found[digest] = name
            self._made[stage] = found
        return self._made[stage]

    def toy(self) -> Step:
        return self._step("toy", "world", self.config.scale.world.identity())

    def base(self, model: str) -> Step:
        """The base model of this name in the scale's `models`."""
        source = self.config.scale.models[model]
        form = {"chat_template": template_text(source.chat_template, f"models.{model}.chat_template")}
        edits = {name: value for name, value in source.config_edits.identity().items() if value is not None}
        form |= {"config_edits": edits} if edits else {}
        if isinstance(source, ToyModel):
            threads = {"threads": self.resources_of_stage("base").threads}
            recipe = {"kind": "toy"} | source.toy.identity() | form
            return self._step("base", model, recipe, {"toy": self.toy()}, threads)
        if isinstance(source, HubModel):
            fetched = self._fetch_model(model, source.repo, source.revision)
            return self._step("base", model, {"kind": "fetched"} | form, {"fetch": fetched})
        assert isinstance(source, LocalModel)
        if not source.path.is_dir():
            raise UserError(f"models.{model}.path: {source.path} is not a directory; point it at a saved model.")
        files = {path.name: file_digest(path) for path in given.model_files(source.path)}
        settings = {"path": str(source.path.resolve())}
        return self._step("base", model, {"kind": "local", "files": files} | form, {}, settings)

    def _fetch_model(self, name: str, repo: str, revision: str) -> Step:
        return self._step("fetch", name, {"type": "model", "repo": repo, "revision": revision})

    def _fetch_dataset(self, name: str, source: HubDataset) -> Step:
        recipe = {"type": "dataset"} | source.model_dump(mode="json", exclude={"kind"})
        return self._step("fetch", name, recipe)

    def _file(self, role: str, where: str, source: Path | HubDataset, name: str) -> tuple[dict, dict, dict]:
        """(recipe, inputs, settings) by which a step reads a file of the user's or of the hub under `role`."""
        if isinstance(source, HubDataset):
            return {}, {f"fetch/{role}": self._fetch_dataset(name, source)}, {}
        if not source.is_file():
            raise UserError(f"{where}: {source} does not exist; give the path of a file.")
        return {role: file_digest(source)}, {}, {role: str(source.resolve())}

    def questions(self, name: str) -> Step:
        """The question set of this name in the scale's `questions`."""
        source: QuestionSet = self.config.scale.questions[name]
        where = f"questions.{name}"
        if isinstance(source, ToyQuestions):
            if name not in FORMATS:
                raise UserError(f"{where}: the toy world has no questions of this name{nearest(name, FORMATS)}.")
            return self._step("questions", name, {"format": FORMATS[name], "toy": name}, {"toy": self.toy()})
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
        return self._step("questions", name, recipe, inputs, settings)

    def data(self, dataset: str, model: str, guard: tuple[str, ...]) -> Step:
        """The rows of a dataset that pass its filter, measured with this model's tokenizer and template."""
        source, base = self.config.scale.datasets[dataset], self.base(model)
        guard = guard if source.guard is None else source.guard
        inputs = {"base": base} | {f"questions/{name}": self.questions(name) for name in guard}
        recipe: dict = {"filter": source.filter.identity()}
        settings = {}
        if isinstance(source.source, ToySource):
            inputs["toy"] = self.toy()
            recipe["source"] = {"kind": "toy"}
        elif isinstance(source.source, HubDataset):
            inputs["fetch"] = self._fetch_dataset(dataset, source.source)
            recipe["source"] = {"kind": "hub"}
        else:
            assert isinstance(source.source, ParquetSource)
            recipe["source"] = source.source.model_dump(mode="json", exclude={"path"})
            path = source.source.path
            hashes, _, paths = self._file("path", f"datasets.{dataset}.source.path", path, dataset)
            recipe["source"]["sha256"] = hashes["path"]
            settings = paths
        return self._step("data", dataset, recipe, inputs, settings)

    # ------------------------------------------------------------ runs

    def run(self, study: str, name: str, seed: int) -> Run:
        """One run of a study with one seed, with all it is made from planned before it."""
        key = (study, name, seed)
        if key not in self.runs:
            if (study, name) in self._being_planned:
                circle = " -> ".join(run for _, run in [*self._being_planned, (study, name)])
                raise UserError(f"study {study}: runs are made from each other in a circle: {circle}.")
            self._being_planned.append((study, name))
            spec = self.config.studies[study].runs[name]
            self.runs[key] = self._given(study, name, spec) if spec.given else self._trained(study, name, spec, seed)
            self._being_planned.pop()
        return self.runs[key]

    def _referred(self, study: str, reference: str, seed: int, where: str) -> Run:
        """The run that another one names, with the same seed, or its only one."""
        owner, _, name = reference.rpartition("/")
        owner = owner or study
        if owner not in self.config.studies:
            raise UserError(f"{where}: study {owner!r} is not in use; add it to `studies` of config.yaml.")
        runs = self.config.studies[owner].runs
        if name not in runs:
            raise UserError(f"{where}: study {owner} has no run {name!r}{nearest(name, runs)}.")
        seeds = runs[name].seeds
        if seed not in seeds and len(seeds) > 1:
            raise UserError(f"{where}: run {name!r} has no seed {seed}, but {', '.join(map(str, seeds))}; add it.")
        return self.run(owner, name, seed if seed in seeds else seeds[0])

    def _trained(self, study: str, name: str, spec: RunSpec, seed: int) -> Run:
        setting, where = self.config.studies[study].setting, f"study {study}, run {name!r}"
        start = self._referred(study, spec.start_from, seed, f"{where}: start_from") if spec.start_from else None
        if spec.model or start is None:
            base, model = self.base(spec.model or setting.model), spec.model or setting.model
            if start and start.base is not base:
                raise UserError(f"{where}: it starts from {start.name!r}, which has another base model than {model!r}.")
        else:
            base, model = start.base, self._model_of(start)
        data = self.data(spec.dataset or setting.dataset, model, setting.guard)
        answers = self._answers(study, spec, seed, base, data, where) if spec.data_from else None
        rows = answers or data
        order = self._step("order", f"{rows.name}.s{seed}", {"seed": seed, "epochs": setting.epochs}, {"data": rows})
        inputs = {"base": base, "data": rows, "order": order}
        inputs |= {"start": start.checkpoints} if start else {}
        inputs |= {"layers": self._trace(study, spec, seed, base, where)} if spec.layers_from else {}
        method = METHODS[spec.recipe.method]
        train = self._step(
            "train", name if len(spec.seeds) == 1 else f"{name}.s{seed}", spec.recipe.identity(), inputs,
            self.config.scale.train_settings.model_dump(mode="json"),
            version=100 * STAGES["train"].version + method.version,
        )  # fmt: skip
        return Run(study, name, seed, spec, base, train, None, spec.recipe.checkpoints, start, answers)

    def _model_of(self, run: Run) -> str:
        while run.start and not run.spec.model:
            run = run.start
        return run.spec.model or self.config.studies[run.study].setting.model

    def _answers(self, study: str, spec: RunSpec, seed: int, base: Step, data: Step, where: str) -> Step:
        """Stage generate: a model's own verified answers to the questions of `data`."""
        setting = self.config.studies[study].setting
        recipe = setting.generate.identity() | {"seed": seed}
        source, inputs = spec.data_from, {"base": base, "data": data}
        if source != BASE:
            run = self._referred(study, source, seed, f"{where}: data_from")
            if run.base is not base:
                raise UserError(f"{where}: data_from: {source!r} has another base model; their tokens would not agree.")
            inputs["checkpoints"] = run.checkpoints
        settings = self.config.scale.evaluation_settings.model_dump(mode="json")
        return self._step("generate", f"{source.replace('/', '.')}.s{seed}", recipe, inputs, settings)

    def _trace(self, study: str, spec: RunSpec, seed: int, base: Step, where: str) -> Step:
        """Stage trace: causal tracing of the base model, or of a run's last checkpoint."""
        setting = self.config.studies[study].setting
        questions = setting.trace.questions
        if questions not in self.config.scale.questions:
            raise UserError(f"{where}: layers_from needs a question set {questions!r} of known facts; add it.")
        source, inputs = spec.layers_from, {"base": base, "questions": self.questions(questions)}
        if source != BASE:
            inputs["checkpoints"] = self._referred(study, source, seed, f"{where}: layers_from").checkpoints
        settings = self.config.scale.trace_settings.model_dump(mode="json")
        return self._step("trace", source.replace("/", "."), setting.trace.identity(), inputs, settings)

    def _given(self, study: str, name: str, spec: RunSpec) -> Run:
        setting, source = self.config.studies[study].setting, spec.given
        where = f"study {study}, run {name!r}: given"
        base = self.base(spec.model or setting.model)
        inputs, paths, files = {"base": base}, {}, {}
        if isinstance(source, LocalCheckpoints):
            found = source.checkpoints or given.find_checkpoints(source.path, where)
            for step, path in sorted(found.items()):
                files[str(step)] = {p.name: file_digest(p) for p in given.model_files(path, where)}
                paths[str(step)] = str(path.resolve())
            settings = {"paths": paths} | ({"output": str(source.path.resolve())} if source.path else {})
        else:
            assert isinstance(source, HubCheckpoints)
            for step, branch in sorted(source.checkpoints.items()):
                commit = given.resolved(source.repo, branch, self._revisions, where)
                inputs[f"fetch/{step:06d}"] = self._fetch_model(f"{name}.{step}", source.repo, commit)
            settings = {}
        recipe = {"files": files} if files else {}
        sizes = {"questions_per_step": source.questions_per_step, "tokens_per_step": source.tokens_per_step}
        recipe |= {field: value for field, value in sizes.items() if value is not None}
        step = self._step("given", name, recipe, inputs, settings)
        steps = tuple(sorted(found if isinstance(source, LocalCheckpoints) else source.checkpoints))
        return Run(study, name, source.seed, spec, base, step, steps, len(steps))

    # ------------------------------------------------------------ results of a study

    def _results(self, study: str) -> Iterator[Entry]:
        """Every result of a study that can be shown."""
        config = self.config.studies[study]
        base = self.base(config.setting.model)
        yield Entry("base", BASE, 0, base)
        for group, recipe in config.setting.evaluation.groups().items():
            yield Entry("evaluate", BASE, 0, self._evaluation(base.name, group, 1, 1, recipe, [], {"base": base}), group)
        for name, spec in config.runs.items():
            for seed in spec.seeds:
                yield from self._results_of(self.run(study, name, seed), config)
        used = {step.digest: step for entry in list(self.runs.values()) if entry.study == study
                for role, step in entry.checkpoints.inputs.items() if role == "data"}  # fmt: skip
        for step in used.values():
            yield Entry(step.stage, step.name, 0, step)

    def _results_of(self, run: Run, config: Study) -> Iterator[Entry]:
        setting, scale = config.setting, self.config.scale
        chain = tuple(run.chain)
        yield Entry(run.checkpoints.stage, run.name, run.seed, run.checkpoints, chain=chain)
        if "layers" in run.checkpoints.inputs:
            yield Entry("trace", run.name, run.seed, run.checkpoints.inputs["layers"])
        count = run.spec.evaluated or run.count
        count = min(count, run.count)
        evaluated = [round(i * run.count / count) for i in range(1, count + 1)]
        shards = min(setting.evaluation_shards, count)
        bounds = [round(i * count / shards) for i in range(shards + 1)]
        for group, recipe in setting.evaluation.groups().items():
            for shard in range(shards):
                share = evaluated[bounds[shard] : bounds[shard + 1]]
                inputs = {"checkpoints": run.checkpoints}
                step = self._evaluation(run.label, group, shard + 1, shards, recipe, share, inputs)
                yield Entry("evaluate", run.name, run.seed, step, group, shard + 1, chain=chain)
        references = {BASE: {"base": run.base}}
        if run.start:
            references["start"] = {"base": run.base, "reference": run.start.checkpoints}
        for reference, inputs in references.items():
            suffix = "" if reference == BASE else f".from_{reference}"
            pair = inputs | {"checkpoints": run.checkpoints}
            for measure, recipe in setting.kl.items():
                questions = {"questions": self.questions(recipe.questions or measure)}
                settings = scale.kl_settings.model_dump(mode="json")
                step = self._step(
                    "kl", f"{run.label}.{measure}{suffix}", recipe.identity(), pair | questions, settings
                )
                yield Entry("kl", run.name, run.seed, step, measure, reference=reference, chain=chain)
            threads = {"threads": self.resources_of_stage("weight_change").threads}
            step = self._step("weight_change", f"{run.label}{suffix}", {}, pair, threads)
            yield Entry("weight_change", run.name, run.seed, step, reference=reference, chain=chain)

    def _evaluation(
        self, label: str, group: str, shard: int, shards: int, recipe, checkpoints: list[int], inputs: dict[str, Step]
    ) -> Step:
        """One group of benchmarks on checkpoints by index; of the base model where there are none."""
        sets = {f"questions/{name}": self.questions(task.questions or name) for name, task in recipe.tasks.items()}
        name = f"{label}.{group}" + (f".{shard}of{shards}" if shards > 1 else "")
        settings = self.config.scale.evaluation_settings.model_dump(mode="json")
        return self._step("evaluate", name, recipe.identity() | {"checkpoints": checkpoints}, inputs | sets, settings)

    # ------------------------------------------------------------ what is shown

    def _show(self, study: str) -> None:
        config = self.config.studies[study]
        looks = {run: look.model_dump(mode="json") for run, look in config.looks.items()}
        for name, raw in config.exhibits.items():
            where = f"{study}.yaml: exhibits.{name}"
            kind = exhibits.find(raw.get("kind", name), self.root, where)
            options = kind.options({key: value for key, value in raw.items() if key != "kind"}, where)
            entries = self._chosen(study, kind.reads, options.runs, where)
            shown = list(dict.fromkeys(entry.run for entry in entries))
            for run in options.labels:
                if run not in shown:
                    raise UserError(f"{where}: labels: {run!r} is none of the runs shown{nearest(run, shown)}.")
            published = self._published(study) if kind.published else {}
            recipe = {"kind": kind.name, "code": kind.code, "options": options.model_dump(mode="json"), "looks": looks}
            recipe |= {"published": published} if published else {}
            files = tuple(f"results/{kind.folder}/{study}/{name}.{suffix}" for suffix in kind.suffixes)
            self.drawings[study, name] = Drawing(study, name, recipe, entries, files)
        if config.claims:
            claims.find(config.claims, f"{study}.yaml: claims")
        drawings = {name: drawing for (owner, name), drawing in self.drawings.items() if owner == study}
        recipe = {
            "title": config.title,
            "scale": self.config.scale_name,
            "description": self.config.scale.description,
            "exhibits": {name: {"digest": d.digest, "files": d.files} for name, d in drawings.items()},
            "published": self._published(study),
            "claims": config.claims,
            "looks": looks,
            "runs": {run: _described(spec) for run, spec in config.runs.items()},
            "evaluation": config.setting.evaluation.model_dump(mode="json"),
            "code": exhibits.report_code(),
        }
        page = (f"results/report/{study}/index.html",)
        self.drawings[study, REPORT] = Drawing(study, REPORT, recipe, tuple(self.entries[study]), page)

    def _chosen(self, study: str, reads: tuple[str, ...], runs: tuple[str, ...], where: str) -> tuple[Entry, ...]:
        """Entries of the stages an exhibit reads, of the runs it names or, when it names none, of all."""
        if not runs:
            found = [entry for entry in self.entries[study] if entry.stage in reads]
        else:
            found = []
            for reference in runs:
                owner, _, name = reference.rpartition("/")
                owner = owner or study
                if owner not in self.entries:
                    raise UserError(f"{where}: runs: study {owner!r} is not in use; add it to `studies` of config.yaml.")
                known = {entry.run for entry in self.entries[owner]}
                if name not in known:
                    raise UserError(f"{where}: runs: {reference!r} is no run of study {owner}{nearest(name, known)}.")
                mine = [e for e in self.entries[owner] if e.run == name and e.stage in reads]
                found += [entry._replace(run=reference) for entry in mine]
        if not found:
            raise UserError(f"{where}: none of its runs has results of stage {' or '.join(reads)}.")
        return tuple(found)

    def _published(self, study: str) -> dict:
        name = self.config.studies[study].published
        if not name:
            return {}
        path = self.workflow / "published" / name
        if not path.is_file():
            raise UserError(f"{study}.yaml: published: {path} does not exist.")
        return yaml.safe_load(path.read_text())

    # ------------------------------------------------------------ looking up

    def _frozen(self, digest: str) -> dict:
        """recipe.json of a step that is no longer in the config but still queued or lying in results/."""
        found = sorted(self.root.glob(f"results/*/*-{digest}/{RECIPE}"))
        if not found:
            raise UserError(f"no step has digest {digest}: neither the config nor results/ knows it.")
        return read_json(found[0])

    def inputs(self, digest: str) -> list[str]:
        """Manifests that must be finished before the step with this digest: its inputs' and its gates'."""
        if digest in self.steps:
            step = self.steps[digest]
            return [other.manifest for other in (step.inputs | step.gates).values()]
        frozen = self._frozen(digest)
        found = frozen["inputs"] | frozen.get("gates", {})
        return [f"{item['directory']}/manifest.json" for item in found.values()]

    def resources_of_stage(self, stage: str) -> StageResources:
        return self.config.scale.resources.get(stage, StageResources())

    def nodes_of_stage(self, stage: str) -> int:
        """Nodes of one job of the stage."""
        settings = self.config.scale.train_settings
        if stage != "train":
            return 1
        return settings.nodes + (settings.server.nodes if settings.server else 0)

    def targets(self, study: str) -> list[str]:
        """The first file of everything that is shown of a study; the others are made with it."""
        return [drawing.files[0] for (owner, _), drawing in self.drawings.items() if owner == study]

    def names(self, folder: str) -> list[str]:
        """Names of the exhibits of all studies whose files lie in results/<folder>; one that is none's if there are none."""
        return sorted({name for (_, name), d in self.drawings.items() if d.folder == folder}) or ["none"]

    def shown(self, study: str) -> list[str]:
        """`targets` without the report."""
        return [file for file in self.targets(study) if not file.startswith(f"results/{REPORT}/")]

    def missing(self) -> list[Step]:
        """Steps without a manifest."""
        return [step for step in self.steps.values() if not step.finished(self.root)]

    def freeze(self) -> Path:
        """Write the config and the recipe of every step and drawing, so that a queued job outlives an edited config.

        Returns the frozen config's path (scalpel.config.load.thaw reads it).
        """
        text = freeze_config(self.config)
        frozen = self.root / f"results/configs/{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        if not frozen.exists():
            frozen.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(frozen, text + "\n")
        for step in self.steps.values():
            freeze_recipe(step, self.root)
        return frozen.resolve()

    def describe(self, study: str, exhibit: str) -> None:
        """Write the recipe file of an exhibit or a report."""
        drawing = self.drawings[study, exhibit]
        path = self.root / drawing.recipe_path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(drawing.frozen(), indent=1, ensure_ascii=False) + "\n")


def _described(spec: RunSpec) -> dict:
    """A run as the report describes it: its recipe, and its axes where they are given."""
    recipe = spec.recipe.model_dump(mode="json") if spec.recipe else {}
    axes = spec.model_dump(mode="json", exclude={"recipe"})
    return recipe | {name: value for name, value in axes.items() if value is not None}
