"""The files of an lm-eval task, found without importing lm-eval: its YAML, the code it calls, its data.

The plan calls `find`; what it returns is the question set's recipe, so nothing in it depends on where files lie.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from scalpel.artifact.files import write_atomically
from scalpel.config.data import GitHubFile, HubDataset
from scalpel.errors import UserError

READERS = ("parquet", "json", "csv")  # dataset_path of data that lies in files
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until")
# Keys of a YAML that say where data lies or how the task is grouped, and nothing about the task itself.
ASIDE = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "tag", "group", "task_list", "task_alias")


class TaskFiles(NamedTuple):
    """name: the task's; text: its YAML with includes laid in; code: Python files by name; files: data by split."""

    name: str
    text: str
    code: dict[str, str]
    files: dict[str, Path | HubDataset | GitHubFile]


class Function(str):
    """The value of a ``!function`` tag: module.function."""


def find(task: str, files: dict[str, Path | HubDataset | GitHubFile], where: str) -> TaskFiles:
    """What an lm-eval task is made of.

    task: path of a YAML, or the name of a task that the installed lm-eval ships. files: data by split, for a task whose
    YAML names a dataset of the hub. where: for messages. Raises UserError that says what to give instead.
    """
    path = _path(task, where)
    code: dict[str, str] = {}
    config = _load(path, where, code)
    name = config.get("task")
    if "class" in config:
        raise UserError(f"{where}: {task} is programmed as a Python class; only tasks that are all YAML are run.")
    if "group" in config or not isinstance(name, str):
        members: Any = config.get("task") if isinstance(config.get("task"), list) else []
        named = ", ".join(m if isinstance(m, str) else str(m.get("task", m.get("group"))) for m in members[:8])
        raise UserError(f"{where}: {task} is a group of tasks ({named}); give each task a question set of its own.")
    kind = config.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        raise UserError(f"{where}: {task} has output_type {kind!r}; {', '.join(OUTPUT_TYPES)} are run.")
    for field in ("doc_to_image", "doc_to_audio"):
        if config.get(field):
            raise UserError(f"{where}: {task} needs images or sound ({field}); only text is read.")
    if config.get("unsafe_code"):
        raise UserError(f"{where}: {task} runs code that the model wrote (unsafe_code); that is not done here.")
    for field in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if not isinstance(config.get(field), (str, type(None))):
            raise UserError(f"{where}: {task}: {field} is {config[field]!r}; it needs the name of a split.")
    asked, shown = evaluated_split(config), fewshot_split(config)
    if asked is None:
        raise UserError(f"{where}: {task} names neither a test_split nor a validation_split; it asks no questions.")
    known = {config.get(field) for field in ("training_split", "validation_split", "test_split")} | {shown}
    if unknown := sorted(set(files) - known):
        named = ", ".join(sorted(split for split in known if split))
        raise UserError(f"{where}: files: {task} has no split {unknown[0]!r}; it has {named}.")
    found = dict(files) or _data_files(config, path, task, asked, shown, where)
    if asked not in found:
        raise UserError(f"{where}: {task} is evaluated on split {asked!r}; give its file as files.{asked}.")
    kept = {split: found[split] for split in dict.fromkeys((asked, shown)) if split in found}
    body = {key: value for key, value in config.items() if key not in ASIDE}
    return TaskFiles(name, dump(body), code, kept)


def evaluated_split(config: dict) -> str | None:
    """The split whose questions are asked, as lm-eval chooses it."""
    return config.get("test_split") or config.get("validation_split")


def fewshot_split(config: dict) -> str | None:
    """The split that few-shot examples are taken from, as lm-eval chooses it; None when the YAML holds them itself."""
    fewshot = config.get("fewshot_config") or {}
    named = fewshot.get("split") or config.get("fewshot_split")
    if named is None and fewshot.get("samples") is not None:
        return None
    return named or config.get("training_split") or config.get("validation_split") or evaluated_split(config)


def parse(text: str) -> dict[str, Any]:
    """The mapping of a task's YAML text, ``!function`` tags kept as Function."""
    return yaml.load(text, Loader=_Loader)


def dump(config: dict[str, Any]) -> str:
    """YAML text of a task's mapping, its keys sorted."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=True, allow_unicode=True)


# ---------------------------------------------------------------- parts


def _data_files(
    config: dict, path: Path, task: str, asked: str, shown: str | None, where: str
) -> dict[str, Path | HubDataset | GitHubFile]:
    """Data by split that a YAML names beside itself; UserError for a dataset of the hub."""
    wanted = ", ".join(f"{split}: <file>" for split in dict.fromkeys((asked, shown)) if split)
    source = config.get("dataset_path")
    if config.get("custom_dataset") is not None or source not in READERS:
        named = f"loads {source!r} from the hub" if source else "makes its data itself"
        raise UserError(
            f"{where}: {task} {named}; give its data as `files: {{{wanted}}}`, parquet, jsonl or csv files or files of "
            "the hub at a commit ({kind: hub, repo, revision, files})."
        )
    given = config.get("dataset_kwargs") or {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: {path}: dataset_kwargs is {given!r}; it needs names and values.")
    given = given.get("data_files")
    given = given if isinstance(given, dict) else {"train": given}
    found: dict[str, Path | HubDataset | GitHubFile] = {}
    for split, names in given.items():
        names = names if isinstance(names, list) else [names]
        if len(names) != 1 or not isinstance(names[0], str):
            raise UserError(f"{where}: {path}: dataset_kwargs.data_files names no single file for split {split!r}.")
        found[split] = path.parent / names[0]
    return found


def _path(task: str, where: str) -> Path:
    """The YAML of a task: a file, or one that lm-eval ships under this name."""
    path = Path(task).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{where}: {path} does not exist; give the path of a task's YAML, or a task's name.")
        return path.resolve()
    spec = importlib.util.find_spec("lm_eval")
    if spec is None:
        raise UserError(f"{where}: lm-eval is not installed, so the task {task!r} is not known; give its YAML's path.")
    return _shipped(task, Path(cast(list[str], spec.submodule_search_locations)[0]) / "tasks", where)


def _shipped(task: str, folder: Path, where: str) -> Path:
    """The YAML of a task below lm-eval's own folder; where a name was found once is remembered in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    memory = cache / "scalpel" / "lm_eval" / f"{importlib.metadata.version('lm_eval')}.json"
    try:
        remembered = json.loads(memory.read_text())
    except (OSError, ValueError):
        remembered = {}
    known = folder / str(remembered.get(task, ""))
    if known.is_file() and _names_task(known.read_bytes(), task):
        return known
    found = _search(folder, task, where)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(remembered | {task: found.relative_to(folder).as_posix()}))
    except OSError:  # a read-only home costs time, not correctness
        pass
    return found


def _search(folder: Path, task: str, where: str) -> Path:
    """The first YAML below `folder`, by path, that names the task; as lm-eval's own index, seconds for 14,000 files."""
    tagged = False
    quoted = re.escape(task.encode())
    named, listed = rb"^[\"']?(tag|group)[\"']?:.*\b" + quoted + rb"\b", rb"^\s*-\s+[\"']?" + quoted + rb"[\"']?\s*$"
    mentioned = re.compile(named + rb"|" + listed, re.M)
    for parent, folders, names in os.walk(folder):
        folders.sort()
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        for name in sorted(names):
            if name.endswith(".yaml"):
                content = (Path(parent) / name).read_bytes()
                if task.encode() in content:
                    if _names_task(content, task):
                        return Path(parent) / name
                    tagged = tagged or bool(mentioned.search(content))
    if tagged:
        raise UserError(f"{where}: {task!r} is a group or tag of tasks; give each of them a question set of its own.")
    raise UserError(f"{where}: the installed lm-eval ships no task {task!r}; give a task's name or its YAML's path.")


def _names_task(content: bytes, task: str) -> bool:
    named = rb"^[\"']?task[\"']?:\s*[\"']?" + re.escape(task.encode()) + rb"[\"']?\s*(#.*)?\r?$"
    return bool(re.search(named, content, re.M))


def _load(path: Path, where: str, code: dict[str, str], seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML with its includes laid in, by lm-eval's rules; Python modules that its functions stand in go to `code`.

    A function of a module beside a YAML is renamed to the module's copy: included files may lie in other folders.
    """
    if path in seen:
        raise UserError(f"{where}: {path} includes itself.")
    try:
        config = parse(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: {path} cannot be read ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {path} holds a value that cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}: {path}: {getattr(error, 'problem', None) or 'not valid YAML'}{line}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{where}: {path} is not a mapping of keys to values.")
    included = config.pop("include", [])
    whole: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        below = _load((path.parent / str(name)).resolve(), where, code, (*seen, path))
        below.pop("task_list", None)
        whole |= below
    return whole | _with_code(config, path, code, where)


def _with_code(value: Any, path: Path, code: dict[str, str], where: str) -> Any:
    """`value` with its functions' modules put into `code`; those that are no file beside the YAML stay as they are."""
    if isinstance(value, dict):
        return {key: _with_code(item, path, code, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_code(item, path, code, where) for item in value]
    if isinstance(value, Function):
        module, _, function = value.rpartition(".")
        file = path.parent / f"{module.replace('.', '/')}.py"
        if file.is_file():
            text = file.read_text()
            name = next((known for known, there in code.items() if there == text), None)
            if name is None:
                plain = module.replace(".", "_")
                name = next(n for n in (f"{plain}{i or ''}.py" for i in range(1000)) if n not in code)
                code[name] = text
            return Function(f"{name.removesuffix('.py')}.{function}")
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise UserError(f"{where}: {path} calls {value}, but there is no {file}.")
    return value


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Plain values and ``!function`` tags; nothing is imported or made."""


class _Dumper(yaml.SafeDumper):
    """Writes Function as a ``!function`` tag again."""


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))
_Dumper.add_representer(Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))
