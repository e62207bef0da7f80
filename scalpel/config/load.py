"""config.yaml + one scale + the studies -> Config. Every mistake is one sentence that names the field and, for an
unknown key, the nearest valid one."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ValidationError

from scalpel.config.scale import Scale, Setting
from scalpel.config.study import Config, Overlay, RunAxes, RunSpec, Study, StudyFile, UserConfig
from scalpel.config.types import BASE, NAME, TRACES
from scalpel.errors import UserError
from scalpel.methods import METHODS

ALIASES = 1000  # of anchors in one YAML file: more is a bomb, not a configuration


def load(raw: dict, workflow: Path) -> Config:
    """Config of a raw mapping (config.yaml merged with --config) and the scale and study files of `workflow`.

    Raises UserError with one sentence for the first thing that is wrong.
    """
    user = validated(UserConfig, raw, "config.yaml")
    scale_file = named_file(workflow / "scales", user.scale, "config.yaml: scale", "scale")
    where = f"{scale_file.name} with config.yaml's overrides"
    scale_raw = merged(_as_published(user, workflow, read_yaml(scale_file)), user.overrides)
    scale = validated(Scale, scale_raw, where)
    files = {}
    for study in user.studies:
        name, path = _study_file(workflow, study)
        if name in files:
            raise UserError(f"config.yaml: studies: two are named {name!r}; rename one's file.")
        files[name] = validated(StudyFile, read_yaml(path), path.name)
    ours = {study: _runs_of_user(study, files, user) for study in files}
    studies = {}
    for name, file in files.items():
        setting = _setting(name, scale, scale_raw, where)
        unknown = [run for run in setting.runs if run not in file.runs]
        if unknown:
            raise UserError(
                f"{scale_file.name}: runs: study {name} has no run {unknown[0]!r}{nearest(unknown[0], file.runs)}."
            )
        runs = {
            run: _run(run, file.runs.get(run, {}), setting, ours[name].get(run, {}), f"{name}.yaml")
            for run in [*file.runs, *(run for run in ours[name] if run not in file.runs)]
        }
        studies[name] = Study(setting=setting, runs=runs, **{k: getattr(file, k) for k in STUDY_FIELDS})
    config = Config(scale_name=user.scale, scale=scale, studies=studies)
    _check_names(config, scale_file.name)
    return config


STUDY_FIELDS = ("title", "exhibits", "looks", "claims", "published")


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


def _study_file(workflow: Path, study: str) -> tuple[str, Path]:
    """(name, file) of a study: one of `workflow`, or a .yaml file of the user's, called by its file's name."""
    where = "config.yaml: studies"
    if not study.endswith(".yaml"):
        return study, named_file(workflow / "studies", study, where, "study")
    path = Path(study)
    if not path.is_file():
        raise UserError(f"{where}: {study} does not exist; give a study's name or the path of its file.")
    if not re.fullmatch(NAME, path.stem):
        raise UserError(f"{where}: {study}: a study is called by its file's name: letters, digits and _ only.")
    return path.stem, path


def _setting(study: str, scale: Scale, raw: dict, where: str) -> Setting:
    """What the scale gives this study: its own fields, with `studies.<study>` laid over them."""
    common = {name: raw[name] for name in Setting.model_fields if name in raw}
    own = scale.studies.get(study, {})
    return validated(Setting, merged(common, own), f"{where}: studies.{study}" if own else where)


def _runs_of_user(study: str, files: dict[str, StudyFile], user: UserConfig) -> dict[str, dict]:
    """config.yaml's `runs` that concern a study: known ones, and new ones that say how they are made."""
    found = {}
    for reference, options in user.runs.items():
        owner, _, run = reference.rpartition("/")
        if owner and owner not in files:
            raise UserError(f"config.yaml: runs: no study in use is named {owner!r}{nearest(owner, files)}.")
        known = [name for name, file in files.items() if run in file.runs and owner in ("", name)]
        new = "method" in options or "given" in options
        if not known and not new:
            there = {run for name, file in files.items() if owner in ("", name) for run in file.runs}
            files_named = ", ".join(f"workflow/studies/{name}.yaml" for name in files)
            raise UserError(
                f"config.yaml: runs: no run is named {run!r}{nearest(run, there)}. A new run needs `method` or "
                f"`given` (runs stand in {files_named}, too)."
            )
        if study in known or (not known and owner in ("", study)):
            found[run] = merged(found.get(run, {}), options)
    return found


def _run(run: str, options: dict, setting: Setting, user: dict, where: str) -> RunSpec:
    """One run: defaults of its method, the study's options, the scale's, the user's, one laid over the other."""
    where = f"{where}: run {run!r}"
    if run == BASE or run.startswith(f"{BASE}_"):
        raise UserError(f"{where}: names that begin with {BASE!r} are the base models'; call the run something else.")
    if run == TRACES:
        raise UserError(f"{where}: {TRACES!r} means a dataset's own answers; call the run something else.")
    layers = [options, setting.runs.get(run, {}), user]
    method = next((layer["method"] for layer in reversed(layers) if "method" in layer), None)
    given = any(layer.get("given") for layer in layers)
    if given == (method is not None):
        raise UserError(f"{where}: give `method` for a run to be trained, or `given` for one made elsewhere.")
    if method is not None:
        if method not in METHODS:
            raise UserError(f"{where}: method {method!r} is not known{nearest(str(method), METHODS)}.")
        layers = [setting.methods.get(method, {}), *layers]
    whole: dict = {}
    for layer in layers:
        for one, other in (("epochs", "steps"), ("steps", "epochs")):  # the topmost layer's way counts
            if layer.get(one) is not None:
                whole.pop(other, None)
        whole = merged(whole, layer)
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


def _check_names(config: Config, file: str) -> None:
    """Every model, dataset and question set that is named must be defined."""

    def known(name: str, there: dict, where: str, what: str) -> None:
        if name not in there:
            raise UserError(f"{file}: {where}: no {what} is named {name!r}{nearest(name, there)}.")

    scale = config.scale
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
                scale.models[name].model_dump(exclude={"chat_template"})
                for name in (setting.model, setting.base_evaluated_as)
            )
            if one != other:
                raise UserError(f"{file}: {where}: it must be {setting.model!r} but for its chat template.")
        known(setting.dataset, scale.datasets, f"dataset of study {study_name}", "dataset")
        for questions in setting.guard:
            known(questions, scale.questions, "guard", "question set")
        for name, task in setting.evaluation.tasks.items():
            known(task.questions or name, scale.questions, f"evaluation.tasks.{name}", "question set")
        for name, measure in setting.kl.items():
            known(measure.questions or name, scale.questions, f"kl.{name}", "question set")
        for name, run in study.runs.items():
            if run.model:
                known(run.model, scale.models, f"run {name!r}: model", "model")
            if run.dataset:
                known(run.dataset, scale.datasets, f"run {name!r}: dataset", "dataset")


# ---------------------------------------------------------------- reading and merging


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and a flood of aliases."""

    def __init__(self, stream):
        super().__init__(stream)
        self.aliases = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > ALIASES:
                raise yaml.MarkedYAMLError(problem="too many aliases", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} stands there twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, (str, int)) else None)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file; UserError naming file and line when it is none."""
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UserError(f"{path}: {problem}{f' in line {mark.line + 1}' if mark else ''}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping of keys to values.")
    return content


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


def nearest(word: str, valid) -> str:
    """``; did you mean X?`` or the list of what there is."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(map(str, valid)))}"


def validated(model: type[BaseModel], raw: Any, where: str):
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
