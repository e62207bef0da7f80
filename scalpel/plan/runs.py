"""Runs and their results: what each is trained from, and everything that is measured on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scalpel import given
from scalpel.artifact.step import Step
from scalpel.audit.fingerprint import fingerprint
from scalpel.chat import OWN, template_text
from scalpel.config.data import OrderRecipe
from scalpel.config.load import nearest
from scalpel.config.models import HubCheckpoints, LocalCheckpoints
from scalpel.config.study import Config, RunSpec, Study
from scalpel.config.types import BASE, TRACES
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.plan.materials import Materials
from scalpel.plan.model import Entry, Run
from scalpel.plan.steps import Steps
from scalpel.remembered import file_digest
from scalpel.stages import STAGES

if TYPE_CHECKING:
    from scalpel.config.analysis import KLRecipe
    from scalpel.config.evaluation import EvaluationRecipe


class Runs:
    """The runs of a config's studies, each planned once, and the results that are made of them."""

    def __init__(self, config: Config, steps: Steps, materials: Materials, root: Path):
        self.config, self.steps, self.materials = config, steps, materials
        self.made: dict[tuple[str, str, int], Run] = {}
        self._being_planned: list[tuple[str, str]] = []
        self._revisions = given.read_revisions(root)

    def run(self, study: str, name: str, seed: int) -> Run:
        """One run of a study with one seed, with all it is made from planned before it."""
        key = (study, name, seed)
        if key not in self.made:
            if (study, name) in self._being_planned:
                circle = " -> ".join(run for _, run in [*self._being_planned, (study, name)])
                raise UserError(f"study {study}: runs are made from each other in a circle: {circle}.")
            self._being_planned.append((study, name))
            spec = self.config.studies[study].runs[name]
            self.made[key] = self._given(study, name, spec) if spec.given else self._trained(study, name, spec, seed)
            self._being_planned.pop()
        return self.made[key]

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
            base, model = self.materials.base(spec.model or setting.model), spec.model or setting.model
            if start and start.base is not base:
                raise UserError(f"{where}: it starts from {start.name!r}, which has another base model than {model!r}.")
        else:
            base, model = start.base, self._model_of(start)
        data = self.materials.data(spec.dataset or setting.dataset, model, setting.guard)
        answers = (
            self._answers(study, spec.data_from, seed, base, data, f"{where}: data_from") if spec.data_from else None
        )
        rows = self._common(study, spec, seed, base, data, answers or data, where)
        asked = OrderRecipe(seed=seed, epochs=setting.epochs).identity()
        order = self.steps.add("order", f"{rows.name}.s{seed}", asked, {"data": rows})
        inputs = {"base": base, "data": rows, "order": order}
        inputs |= {"start": start.checkpoints} if start else {}
        inputs |= {"layers": self._trace(study, spec, seed, base, where)} if spec.layers_from else {}
        assert spec.recipe is not None
        method = METHODS[spec.recipe.method]
        settings = setting.train_settings.of(spec.recipe.method)
        seal = fingerprint(settings, spec.recipe)
        name_of_audit = f"{seal['engine']}.{seal['ranks']}x{seal['accumulation']}"
        name_of_audit += f".{spec.recipe.method}" if "rollouts" in seal else ""
        audit = self.steps.add(
            "audit", name_of_audit, {"fingerprint": seal}, {"base": base}, settings.model_dump(mode="json")
        )
        train = self.steps.add(
            "train", name if len(spec.seeds) == 1 else f"{name}.s{seed}", spec.recipe.identity(), inputs,
            settings.model_dump(mode="json"),
            gates={"audit": audit}, version=100 * STAGES["train"].version + method.version,
        )  # fmt: skip
        return Run(study, name, seed, spec, base, train, train, None, spec.recipe.checkpoints, start, answers)

    def _model_of(self, run: Run) -> str:
        while run.start and not run.spec.model:
            run = run.start
        return run.spec.model or self.config.studies[run.study].setting.model

    def _common(self, study: str, spec: RunSpec, seed: int, base: Step, data: Step, own: Step, where: str) -> Step:
        """Stage common: the rows of `own` that all sources of `common_with` answer; `own` when there is none."""
        others = {}
        for source in spec.common_with:
            other = (
                data if source == TRACES else self._answers(study, source, seed, base, data, f"{where}: common_with")
            )
            if other is not own:
                others[f"others/{source.replace('/', '.')}"] = other
        if not others:
            return own
        return self.steps.add("common", own.name, {}, {"own": own} | others)

    def _answers(self, study: str, source: str, seed: int, base: Step, data: Step, where: str) -> Step:
        """Stage generate: a model's own verified answers to the questions of `data`."""
        setting = self.config.studies[study].setting
        recipe = setting.generate.identity() | {"seed": seed}
        inputs = {"base": base, "data": data}
        if source != BASE:
            run = self._referred(study, source, seed, where)
            if run.base is not base:
                raise UserError(f"{where}: {source!r} has another base model; their tokens would not agree.")
            inputs["checkpoints"] = run.asked
        settings = self.config.scale.evaluation_settings.model_dump(mode="json")
        return self.steps.add("generate", f"{source.replace('/', '.')}.s{seed}", recipe, inputs, settings)

    def _trace(self, study: str, spec: RunSpec, seed: int, base: Step, where: str) -> Step:
        """Stage trace: causal tracing of the base model, or of a run's last checkpoint."""
        setting = self.config.studies[study].setting
        questions = setting.trace.questions
        if questions not in self.config.scale.questions:
            raise UserError(f"{where}: layers_from needs a question set {questions!r} of known facts; add it.")
        assert spec.layers_from is not None
        source, inputs = spec.layers_from, {"base": base, "questions": self.materials.questions(questions)}
        if source != BASE:
            inputs["checkpoints"] = self._referred(study, source, seed, f"{where}: layers_from").checkpoints
        settings = self.config.scale.trace_settings.model_dump(mode="json")
        return self.steps.add("trace", source.replace("/", "."), setting.trace.identity(), inputs, settings)

    def _given(self, study: str, name: str, spec: RunSpec) -> Run:
        setting, source = self.config.studies[study].setting, spec.given
        where = f"study {study}, run {name!r}: given"
        base = self.materials.base(spec.model or setting.model)
        inputs, paths, files = {"base": base}, {}, {}
        step: int | Step
        if isinstance(source, LocalCheckpoints):
            found = source.checkpoints or given.find_checkpoints(cast(Path, source.path), where)
            for step, path in sorted(found.items()):
                files[str(step)] = {p.name: file_digest(p) for p in given.model_files(path, where)}
                paths[str(step)] = str(path.resolve())
            settings = {"paths": paths} | ({"output": str(source.path.resolve())} if source.path else {})
        else:
            assert isinstance(source, HubCheckpoints)
            for step, branch in sorted(source.checkpoints.items()):
                commit = given.resolved(source.repo, branch, self._revisions, where)
                inputs[f"fetch/{step:06d}"] = self.materials.fetch_model(f"{name}.{step}", source.repo, commit)
            settings = {}
        recipe: dict[str, Any] = {"files": files} if files else {}
        if "output" in settings and (state := Path(str(settings["output"])) / "trainer_state.json").is_file():
            recipe["state"] = file_digest(state)  # whose log is read
        sizes = {
            field: getattr(source, field) for field in ("questions_per_step", "tokens_per_step", "written_per_step")
        }
        recipe |= {field: value for field, value in sizes.items() if value is not None}
        made = asked = self.steps.add("given", name, recipe, inputs, settings)
        steps = tuple(sorted(found if isinstance(source, LocalCheckpoints) else source.checkpoints))
        if source.chat_template is not None:
            form: dict[str, Any] = {"chat_template": template_text(source.chat_template, f"{where}.chat_template")}
            if source.chat_template == OWN and isinstance(source, HubCheckpoints):
                commit = given.resolved(source.repo, source.checkpoints[steps[-1]], self._revisions, where)
                fetched = self.materials.fetch_model(f"{name}.template", source.repo, commit, given.TEMPLATE_FILES)
                inputs = inputs | {"template": fetched}
            elif source.chat_template == OWN:
                last = Path(paths[str(steps[-1])])
                given.own_template(last, where)
                form["template"] = {path.name: file_digest(path) for path in given.template_files(last)}
            asked = self.steps.add("given", f"{name}.asked", recipe | form, inputs, settings)
        return Run(study, name, source.seed, spec, base, made, asked, steps, len(steps))

    # ------------------------------------------------------------ results of a study

    def results(self, study: str) -> Iterator[Entry]:
        """Every result of a study that can be shown."""
        config = self.config.studies[study]
        own = self.materials.base(config.setting.model)
        runs = [self.run(study, name, seed) for name, spec in config.runs.items() for seed in spec.seeds]
        for base in {step.digest: step for step in (own, *(run.base for run in runs))}.values():
            name = BASE if base is own else f"{BASE}_{base.name}"
            yield Entry("base", name, 0, base)
            asked = (
                self.materials.base(config.setting.base_evaluated_as or config.setting.model) if base is own else base
            )
            for group, recipe in config.setting.evaluation.groups().items():
                step = self._evaluation(asked.name, group, 1, 1, recipe, [], {"base": asked})
                yield Entry("evaluate", name, 0, step, group)
        for run in runs:
            yield from self._results_of(run, config)
        rows = [run.checkpoints.inputs["data"] for run in runs if "data" in run.checkpoints.inputs]
        for step in {step.digest: step for one in rows for step in _rows_behind(one)}.values():
            yield Entry(step.stage, step.name, 0, step)

    def _results_of(self, run: Run, config: Study) -> Iterator[Entry]:
        setting, scale = config.setting, self.config.scale
        recipe: EvaluationRecipe | KLRecipe
        chain = tuple(run.chain)
        yield Entry(run.checkpoints.stage, run.name, run.seed, run.checkpoints, chain=chain)
        if "layers" in run.checkpoints.inputs:
            yield Entry("trace", run.name, run.seed, run.checkpoints.inputs["layers"])
        count = run.spec.evaluated or run.count
        count = min(count, run.count)
        evaluated = [round(i * run.count / count) for i in range(1, count + 1)]
        for group, recipe in setting.evaluation.groups().items():
            asked = evaluated[-1:] if next(iter(recipe.tasks.values())).at == "last" else evaluated
            shards = min(setting.evaluation_shards, len(asked))
            bounds = [round(i * len(asked) / shards) for i in range(shards + 1)]
            for shard in range(shards):
                share = asked[bounds[shard] : bounds[shard + 1]]
                inputs = {"checkpoints": run.asked}
                step = self._evaluation(run.label, group, shard + 1, shards, recipe, share, inputs)
                yield Entry("evaluate", run.name, run.seed, step, group, shard + 1, chain=chain)
        references = {BASE: {"base": run.base}}
        if run.start:
            references["start"] = {"base": run.base, "reference": run.start.checkpoints}
        for reference, inputs in references.items():
            suffix = "" if reference == BASE else f".from_{reference}"
            pair = inputs | {"checkpoints": run.checkpoints}
            for measure, recipe in setting.kl.items():
                questions = {"questions": self.materials.questions(recipe.questions or measure)}
                settings = scale.kl_settings.model_dump(mode="json")
                step = self.steps.add(
                    "kl", f"{run.label}.{measure}{suffix}", recipe.identity(),
                    pair | questions | {"checkpoints": run.asked}, settings,
                )  # fmt: skip
                yield Entry("kl", run.name, run.seed, step, measure, reference=reference, chain=chain)
            step = self.steps.add(
                "weight_change", f"{run.label}{suffix}", {}, pair, self.steps.threads("weight_change")
            )
            yield Entry("weight_change", run.name, run.seed, step, reference=reference, chain=chain)
        if setting.structure:
            yield Entry("structure", run.name, run.seed, self._structure(run, config, evaluated), chain=chain)

    def _structure(self, run: Run, config: Study, evaluated: list[int]) -> Step:
        """Stage structure of the checkpoints with these indices; of a later seed beside those of the run's first."""
        inputs = {"base": run.base, "checkpoints": run.checkpoints}
        first = run.spec.seeds[0]
        if run.seed != first:
            inputs["other"] = self.run(run.study, run.name, first).checkpoints
        assert config.setting.structure is not None
        recipe = config.setting.structure.identity() | {"checkpoints": evaluated}
        return self.steps.add("structure", run.label, recipe, inputs, self.steps.threads("structure"))

    def _evaluation(
        self,
        label: str,
        group: str,
        shard: int,
        shards: int,
        recipe: EvaluationRecipe,
        checkpoints: list[int],
        inputs: dict[str, Step],
    ) -> Step:
        """One group of benchmarks on checkpoints by index; of the base model where there are none."""
        sets = {
            f"questions/{name}": self.materials.questions(task.questions or name) for name, task in recipe.tasks.items()
        }
        name = f"{label}.{group}" + (f".{shard}of{shards}" if shards > 1 else "")
        settings = self.config.scale.evaluation_settings.model_dump(mode="json")
        return self.steps.add(
            "evaluate", name, recipe.identity() | {"checkpoints": checkpoints}, inputs | sets, settings
        )


def _rows_behind(step: Step) -> Iterator[Step]:
    """Rows that are trained on, after those they were chosen from."""
    for role, other in step.inputs.items():
        if role in ("own", "data") or role.startswith("others/"):
            yield from _rows_behind(other)
    yield step
