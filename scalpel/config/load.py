"""config.yaml + one scale + the studies -> Config. Every mistake is one sentence that names the field and, for an
unknown key, the nearest valid one."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from scalpel.config.scale import Scale, Setting
from scalpel.config.study import Config, Overlay, RunAxes, RunSpec, Study, StudyFile, UserConfig
from scalpel.config.types import BASE, NAME, TRACES
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.stages import STAGES

LENGTHS = ("epochs", "steps", "steps_of")  # ways to say how long a run is
M = TypeVar("M", bound=BaseModel)
PAPER = "cluster"  # the scale with the papers' models, data and recipes
ALIASES = 1000  # of anchors in one YAML file: more is a bomb, not a configuration


def load(raw: dict, workflow: Path, papers: bool = True) -> Config:
    """Config of a raw mapping (config.yaml merged with --config) and the scale and study files of `workflow`.

    papers: with the recipes of the paper's scale beside those of our own studies.
    Raises UserError with one sentence for the first thing that is wrong.
    """
    user = validated(UserConfig, raw, "config.yaml")
    scale_file = named_file(workflow / "scales", user.scale, "config.yaml: scale", "scale")
    where = f"{scale_file.name} with config.yaml's overrides"
    scale_raw = merged(_as_published(user, workflow, read_yaml(scale_file)), user.overrides)
    if user.tracking is not None:
        scale_raw = merged(scale_raw, {"train_settings": {"tracking": user.tracking}})
    scale = validated(Scale, scale_raw, where)
    files, paths = {}, {}
    for study in user.studies:
        name, path = _study_file(workflow, study)
        if name in files:
            raise UserError(f"config.yaml: studies: two are named {name!r}; rename one's file.")
        files[name], paths[name] = _study(workflow, name, path), _shown(path, workflow)
    ours = {study: _runs_of_user(study, files, paths, user) for study in files}
    studies = {}
    for name, file in files.items():
        setting = _setting(name, file, scale, scale_raw, where)
        named = {run: [file.runs.get(run, {}), setting.runs.get(run, {}), ours[name].get(run, {})]
                 for run in [*file.runs, *ours[name]]}  # fmt: skip
        runs = _runs(named, setting, f"{name}.yaml")
        _settle_rates(runs, f"{name}.yaml")
        theirs = _papers(name, paths[name], workflow) if papers else {}
        studies[name] = Study(setting=setting, runs=runs, papers=theirs, **{k: getattr(file, k) for k in STUDY_FIELDS})
        _check_answer(studies[name], f"{name}.yaml: answer")
    _check_overridden_runs({name: study.runs for name, study in studies.items()}, files, paths, user)
    config = Config(scale_name=user.scale, scale=scale, studies=studies)
    _check_names(config, scale_file.name)
    return config


STUDY_FIELDS = ("title", "exhibits", "looks", "claims", "margins", "published", "answer")


def record_config(config: Config) -> str:
    """JSON text from which `recorded_config` makes the same Config, whatever has become of the files behind it."""
    return config.model_dump_json(indent=1)


def recorded_config(path: Path | str) -> Config:
    """The Config of `record_config`'s text in a file; UserError when it is missing or damaged."""
    try:
        return Config.model_validate_json(Path(path).read_text())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path} is missing or damaged ({type(error).__name__}); start snakemake again.") from None


# ---------------------------------------------------------------- parts


def _shown(path: Path, workflow: Path) -> str:
    """A study's file as the user knows it: below the checkout when it lies there."""
    return path.relative_to(workflow.parent).as_posix() if path.is_relative_to(workflow) else path.as_posix()


def _check_overridden_runs(
    runs: dict[str, dict], files: dict[str, StudyFile], paths: dict[str, str], user: UserConfig
) -> None:
    """What config.yaml says of single runs must be of runs; a scale's own file may name runs that a study lacks.

    runs, files, paths: of each study in use. What is said of a study holds for those that extend it.
    """
    asked = [("runs", name, list(files)) for name in user.overrides.get("runs") or {}]
    for study, own in (user.overrides.get("studies") or {}).items():
        heirs = [name for name, file in files.items() if study in file.lineage]
        if not heirs and own is not None:
            raise UserError(
                f"config.yaml: overrides.studies: no study in use is named {study!r}{nearest(study, paths)}."
            )
        asked += [(f"studies.{study}.runs", name, heirs) for name in (own or {}).get("runs") or {}]
    for where, name, heirs in asked:
        known = set().union(*(runs[study] for study in heirs))
        if name not in known:
            shown = ", ".join(paths[study] for study in heirs)
            raise UserError(f"config.yaml: overrides.{where}: {shown} has no run {name!r}{nearest(name, known)}.")


def _as_published(user: UserConfig, workflow: Path, scale: dict) -> dict:
    """The scale with a file of workflow/as_published laid over it, where config.yaml names one."""
    if user.as_published is None:
        return scale
    where = "config.yaml: as_published"
    file = named_file(workflow / "as_published", user.as_published, where, "published variant")
    overlay = validated(Overlay, read_yaml(file), file.name)
    if overlay.scale != user.scale:
        raise UserError(f"{where}: {user.as_published!r} says how scale {overlay.scale} is to be, not {user.scale}.")
    return merged(scale, overlay.overrides)


def _study_file(workflow: Path, study: str, where: str = "config.yaml: studies") -> tuple[str, Path]:
    """(name, file) of a study: one of `workflow`, or a .yaml file of the user's, called by its file's name."""
    if not study.endswith(".yaml"):
        return study, named_file(workflow / "studies", study, where, "study")
    path = Path(study)
    if not path.is_file():
        raise UserError(f"{where}: {study} does not exist; give a study's name or the path of its file.")
    if not re.fullmatch(NAME, path.stem):
        raise UserError(f"{where}: {study}: a study is called by its file's name: letters, digits and _ only.")
    return path.stem, path


def _study(workflow: Path, name: str, path: Path, above: tuple[str, ...] = ()) -> StudyFile:
    """A study's file, laid over those of the studies that it extends."""
    raw = read_yaml(path)
    there = raw.get("exhibits")
    left = (
        {k: v for k, v in there.items() if v is not None} if raw.get("extends") and isinstance(there, dict) else there
    )
    file = validated(StudyFile, raw | ({"exhibits": left} if left != there else {}), path.name)
    if file.extends is None:
        return file.model_copy(update={"lineage": (name,)})
    wanted = str(path.parent / file.extends) if file.extends.endswith(".yaml") else file.extends
    parent, parent_path = _study_file(workflow, wanted, f"{path.name}: extends")
    if parent in (*above, name):
        raise UserError(f"{path.name}: extends: {file.extends!r} extends this study itself.")
    below = _study(workflow, parent, parent_path, (*above, name))
    parts = {
        part: merged(getattr(below, part), raw.get(part) or {}) for part in ("runs", "exhibits", "looks", "setting")
    }
    parts["margins"] = below.margins.model_dump() | (raw.get("margins") or {})
    whole = raw | parts | {part: raw.get(part, getattr(below, part)) for part in ("claims", "published", "answer")}
    file = validated(StudyFile, whole, path.name)
    return file.model_copy(update={"lineage": (*below.lineage, name)})


def _papers(name: str, path: str, workflow: Path) -> dict[str, dict]:
    """How the paper's scale describes the runs of a study, nothing overridden; empty for a study that is not ours."""
    if path != f"{workflow.name}/studies/{name}.yaml":
        return {}
    try:
        at_scale = load({"scale": PAPER, "studies": [name]}, workflow, papers=False)
    except UserError:  # a scale of the user's own in its place
        return {}
    return {run: spec.described() for run, spec in at_scale.studies[name].runs.items()}


def _check_answer(study: Study, where: str) -> None:
    """Runs and exhibits that the answer names must be the study's."""
    kinds = {"equal": "equal_budget", "bugs": "bug_effect"}
    for run in (*study.answer.runs, *filter(None, [study.answer.control])):
        if run not in study.runs:
            raise UserError(f"{where}: no run of it is named {run!r}{nearest(run, study.runs)}.")
    for field in ("picture", *kinds):
        name = getattr(study.answer, field)
        if name is not None and name not in study.exhibits:
            raise UserError(f"{where}: {field}: no exhibit of it is named {name!r}{nearest(name, study.exhibits)}.")
    for field, kind in kinds.items():
        name = getattr(study.answer, field)
        if name is not None and study.exhibits[name].get("kind", name) != kind:
            raise UserError(f"{where}: {field}: {name!r} is no exhibit of kind {kind}; name one, or leave it out.")


def _setting(name: str, file: StudyFile, scale: Scale, raw: dict, where: str) -> Setting:
    """What a scale gives a study: its own fields, then the study's `setting`, then its `studies` of the lineage."""
    whole = {field: raw[field] for field in Setting.model_fields if field in raw}
    if file.setting:
        whole = merged(whole, file.setting)
        validated(Setting, whole, f"{name}.yaml: setting, laid over {where}")
    for study in file.lineage:
        own = scale.studies.get(study, {})
        whole = merged(whole, own)
        where = f"{where}: studies.{study}" if own and study == name else where
    return validated(Setting, whole, where)


def _settle_rates(runs: dict[str, RunSpec], where: str) -> None:
    """Give runs the learning rate of the run that `rate_of` names, times `rate_times`."""
    own = {name: spec.recipe.learning_rate for name, spec in runs.items() if spec.recipe and not spec.rate_of}
    for name, spec in runs.items():
        if spec.rate_of is None and spec.rate_times == 1:
            continue
        of = spec.rate_of or name
        if spec.recipe is None or of not in own:
            raise UserError(
                f"{where}: run {name!r}: rate_of: {of!r} is no trained run with a learning rate of its own"
                f"{nearest(of, own)}."
            )
        changed = spec.recipe.model_dump() | {"learning_rate": float(f"{own[of] * spec.rate_times:.12g}")}
        recipe = validated(type(spec.recipe), changed, f"{where}: run {name!r}")
        runs[name] = spec.model_copy(update={"recipe": recipe})


def _runs_of_user(study: str, files: dict[str, StudyFile], paths: dict[str, str], user: UserConfig) -> dict[str, dict]:
    """config.yaml's `runs` that concern a study: known ones, and new ones that say how they are made."""
    found: dict[str, dict] = {}
    for reference, options in user.runs.items():
        owner, _, run = reference.rpartition("/")
        if owner and owner not in files:
            raise UserError(f"config.yaml: runs: no study in use is named {owner!r}{nearest(owner, files)}.")
        known = [name for name, file in files.items() if run in file.runs and owner in ("", name)]
        new = "method" in options or "given" in options
        if not known and not new:
            there = {run for name, file in files.items() if owner in ("", name) for run in file.runs}
            raise UserError(
                f"config.yaml: runs: no run is named {run!r}{nearest(run, there)}. A new run needs `method` or "
                f"`given` (runs stand in {', '.join(paths.values())}, too)."
            )
        if study in known or (not known and owner in ("", study)):
            found[run] = merged(found.get(run, {}), options)
    return found


def _runs(named: dict[str, list[dict]], setting: Setting, where: str) -> dict[str, RunSpec]:
    """All runs of a study: those that take their steps from another after that one."""
    laid = {run: _laid(run, layers, setting, f"{where}: run {run!r}") for run, layers in named.items()}
    found: dict[str, RunSpec] = {}
    while len(found) < len(laid):
        before = len(found)
        for run, whole in laid.items():
            of = whole.get("steps_of")
            if run not in found and (not isinstance(of, str) or of in found):
                found[run] = _run(whole, setting, found[of] if isinstance(of, str) else None, f"{where}: run {run!r}")
        if len(found) == before:
            run, of = next((run, whole["steps_of"]) for run, whole in laid.items() if run not in found)
            raise UserError(f"{where}: run {run!r}: steps_of: {of!r} names no run with steps{nearest(of, found)}.")
    return {run: found[run] for run in named}


def _laid(run: str, layers: list[dict], setting: Setting, where: str) -> dict:
    """A run's fields: defaults of its method, the study's, the scale's, the user's, one laid over the other."""
    if run == BASE or run.startswith(f"{BASE}_"):
        raise UserError(f"{where}: names that begin with {BASE!r} are the base models'; call the run something else.")
    if run == TRACES:
        raise UserError(f"{where}: {TRACES!r} means a dataset's own answers; call the run something else.")
    method = next((layer["method"] for layer in reversed(layers) if "method" in layer), None)
    given = any(layer.get("given") for layer in layers)
    if given == (method is not None):
        raise UserError(f"{where}: give `method` for a run to be trained, or `given` for one made elsewhere.")
    if method is not None:
        if not isinstance(method, str) or method not in METHODS:
            raise UserError(f"{where}: method {method!r} is not known{nearest(str(method), METHODS)}.")
        layers = [setting.methods.get(method, {}), *layers]
    whole: dict = {}
    for layer in layers:
        if any(layer.get(way) is not None for way in LENGTHS):  # the topmost layer's way counts
            whole = {key: value for key, value in whole.items() if key not in LENGTHS or key in layer}
        whole = merged(whole, layer)
    return whole


def _run(whole: dict, setting: Setting, of: RunSpec | None, where: str) -> RunSpec:
    """One run, of: the one that it takes its steps from."""
    method = whole.get("method")
    if of is not None:
        if getattr(of.recipe, "steps", None) is None:
            raise UserError(f"{where}: steps_of: that run has no number of steps; give `steps`.")
        ways = [way for way in ("epochs", "steps") if whole.get(way) is not None]
        if ways:
            raise UserError(f"{where}: gives `{ways[0]}` and `steps_of`; give one of them.")
        whole = {key: value for key, value in whole.items() if key != "epochs"} | {"steps": cast(Any, of.recipe).steps}
    axes = {key: value for key, value in whole.items() if key in RunAxes.model_fields}
    rest = {key: value for key, value in whole.items() if key not in RunAxes.model_fields}
    valid = validated(RunAxes, axes, where)
    recipe = None
    if method is not None:
        known = [*METHODS[method].Recipe.model_fields, *RunAxes.model_fields]
        unknown = [key for key in rest if key not in known and key != "seed"]
        if unknown:
            raise UserError(f"{where}: unknown key {unknown[0]!r}{nearest(unknown[0], known)}.")
        recipe = validated(METHODS[method].Recipe, rest, where)
        traced = recipe.trainable.freeze_mlp_above is not None
        if traced != (valid.layers_from is not None):
            raise UserError(f"{where}: `layers_from` and `trainable.freeze_mlp_above` go together.")
    elif rest:
        raise UserError(f"{where}: unknown key {next(iter(rest))!r}{nearest(next(iter(rest)), RunAxes.model_fields)}.")
    if valid.given and (valid.start_from or valid.data_from or valid.layers_from or valid.seeds):
        raise UserError(f"{where}: a given run takes no start_from, data_from, layers_from or seeds.")
    seeds = (valid.given.seed,) if valid.given else valid.seeds or setting.seeds
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds names one twice.")
    return RunSpec(**dict(valid) | {"recipe": recipe, "seeds": seeds})


def _nodes(setting: Setting) -> int:
    """Of a training job that samples."""
    settings = setting.train_settings
    return settings.nodes + (settings.server.nodes if settings.server else 0)


def _check_names(config: Config, file: str) -> None:
    """Every model, dataset and question set that is named must be defined."""

    def known(name: str, there: dict, where: str, what: str, way_out: str = "") -> None:
        if name not in there:
            raise UserError(f"{file}: {where}: no {what} is named {name!r}{nearest(name, there)}{way_out}.")

    def give_or_remove(part: str) -> str:
        return f"; give it in `questions`, or remove what asks for it: `overrides: {part}`"

    scale = config.scale
    for stage in scale.resources:
        known(stage, dict(STAGES), "resources", "stage")
    for name, dataset in scale.datasets.items():
        for questions in dataset.guard or ():
            known(questions, scale.questions, f"datasets.{name}.guard", "question set")
    for study_name, study in config.studies.items():
        setting = study.setting
        known(setting.model, scale.models, f"model of study {study_name}", "model")
        if setting.base_evaluated_as:
            where = f"base_evaluated_as of study {study_name}"
            known(setting.base_evaluated_as, scale.models, where, "model")
            one, other = (
                scale.models[name].model_dump(exclude={"chat_template", "license"})
                for name in (setting.model, setting.base_evaluated_as)
            )
            if one != other:
                raise UserError(f"{file}: {where}: it must be {setting.model!r} but for its chat template.")
        known(setting.dataset, scale.datasets, f"dataset of study {study_name}", "dataset")
        for method in setting.methods:
            known(method, METHODS, f"methods of study {study_name}", "method")
        for method in setting.train_settings.engine_of:
            known(method, METHODS, f"train_settings.engine_of of study {study_name}", "method")
        if _nodes(setting) != _nodes(scale):
            raise UserError(
                f"{file}: train_settings of study {study_name}: a training job has {_nodes(scale)} nodes at this "
                "scale; change `nodes` and `server.nodes` for the whole scale."
            )
        for name, task in setting.evaluation.tasks.items():
            way_out = give_or_remove(f"{{evaluation: {{tasks: {{{name}: null}}}}}}")
            known(task.questions or name, scale.questions, f"evaluation.tasks.{name}", "question set", way_out)
        for name, measure in setting.kl.items():
            way_out = give_or_remove(f"{{kl: {{{name}: null}}}}")
            known(measure.questions or name, scale.questions, f"kl.{name}", "question set", way_out)
        for questions in setting.guard:
            way_out = give_or_remove(f"{{guard: [{', '.join(q for q in setting.guard if q != questions)}]}}")
            known(questions, scale.questions, "guard", "question set", way_out)
        for name, run in study.runs.items():
            if run.model:
                known(run.model, scale.models, f"run {name!r}: model", "model")
            if run.dataset:
                known(run.dataset, scale.datasets, f"run {name!r}: dataset", "dataset")


# ---------------------------------------------------------------- reading and merging


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and a flood of aliases."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > ALIASES:
                raise yaml.MarkedYAMLError(problem="too many aliases", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} stands there twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, (str, int)) else None)
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=64)  # a plan reads the same scale and studies several times
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file; UserError naming file and line when it is none."""
    try:
        content = copy.deepcopy(_parsed(path.read_text()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UserError(f"{path}: {problem}{f' in line {mark.line + 1}' if mark else ''}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    except (ValueError, RecursionError) as error:  # a date that is none, too many digits, too deep
        raise UserError(f"{path} holds a value that cannot be read ({str(error).splitlines()[0]}).") from None
    if not isinstance(content, (dict, type(None))):
        raise UserError(f"{path}: not a mapping of keys to values.")
    return content or {}


def merged(below: dict, above: dict) -> dict:
    """`above` laid over `below`, mappings key by key.

    A mapping whose `kind` changes is replaced whole; null in place of a mapping removes it.
    """
    whole = dict(below)
    for key, value in above.items():
        old = whole.get(key)
        if value is None and isinstance(old, dict):
            del whole[key]
        elif isinstance(old, dict) and isinstance(value, dict) and _same_kind(old, value):
            whole[key] = merged(old, value)
        else:
            whole[key] = value
    return whole


def _same_kind(old: dict, new: dict) -> bool:
    """Whether a mapping is laid over another or takes its place; `file` and `lm_eval` tell a question set's kind."""
    told = new.get("kind") or ("files" if "file" in new else "lm_eval" if "lm_eval" in new else None)
    return "kind" not in old or told is None or told == old["kind"]


def named_file(folder: Path, name: str, where: str, what: str) -> Path:
    """<folder>/<name>.yaml; UserError with the nearest name when there is none."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"{where}: no {what} is named {name!r}{nearest(name, names)}.")
    return folder / f"{name}.yaml"


# ---------------------------------------------------------------- sentences


def nearest(word: str, valid: Iterable[str]) -> str:
    """``; did you mean X?`` or the list of what there is."""
    valid = sorted(map(str, valid))
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if not valid:
        return "; there is none"
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(valid)}"


def validated(model: type[M], raw: Any, where: str) -> M:
    """`raw` as the model; UserError with one sentence for the first thing that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        field = ".".join(path) or "the whole"
        if first["type"] == "extra_forbidden":
            valid = _fields_at(model, path[:-1])
            raise UserError(f"{where}: unknown key {field!r}{nearest(path[-1], valid)}.") from None
        if path and path[-1] == "[key]":  # a mapping with names, or with a fixed set of keys
            expected = first.get("ctx", {}).get("expected", "")
            key = ".".join([*path[:-2], str(first["input"])])
            if not expected:
                name, inside = str(first["input"]), ".".join(path[:-2])
                if first["type"].startswith(("int", "greater", "less")):
                    raise UserError(f"{where}: {inside}: {name!r} is no step; give a whole number above 0.") from None
                raise UserError(
                    f"{where}: {inside}: {name!r} is no name: letters, digits and _ only, 60 at most."
                ) from None
            valid = [word.strip("' ") for word in expected.replace(" or ", ",").split(",")]
            raise UserError(f"{where}: unknown key {key!r}{nearest(str(first['input']), valid)}.") from None
        message = first["msg"].removeprefix("Value error, ")
        given = f", not {first['input']!r}" if isinstance(first["input"], (str, int, float, bool, type(None))) else ""
        raise UserError(f"{where}: {field}: {message[0].lower() + message[1:]}{given}.") from None


def _fields_at(model: Any, path: list[str]) -> list[str]:
    """Names of the fields of the model that `path` leads to; union tags and keys of mappings are passed over."""
    models = [model]
    for part in path:
        kinds = [(m, m.model_fields["kind"].annotation) for m in models if "kind" in m.model_fields]
        tagged = [m for m, kind in kinds if len(models) > 1 and part in get_args(kind)]
        fields = [getattr(candidate, "model_fields", {}) for candidate in models]
        following = [found for some in fields if part in some for found in _models_in(some[part].annotation)]
        models = tagged or following or models
    return sorted({name for candidate in models for name in candidate.model_fields})


def _models_in(annotation: Any) -> list:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if annotation is Literal:
        return []
    return [found for part in get_args(annotation) for found in _models_in(part)]
