"""Checkpoints made elsewhere: found as transformers, TRL and verl lay them out, and taken in as a run's own.

Finding and hashing is the plan's part and needs no torch. Nothing pickled is read: weights are safetensors only.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from scalpel.artifact.files import write_atomically
from scalpel.config.load import read_yaml
from scalpel.config.models import HubCheckpoints, HubModel
from scalpel.config.study import Config
from scalpel.errors import UserError

REVISIONS = "revisions.yaml"  # beside config.yaml: "<repo>@<branch>" -> commit hash, written by make resolve
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")  # the first counts where there are both
ADAPTER = "adapter_config.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
LAYOUTS = (  # how a directory for one step is called, and where the model lies in it
    (re.compile(r"checkpoint-(\d+)"), ("",)),  # transformers, TRL
    (re.compile(r"global_step_?(\d+)"), ("actor/huggingface", "huggingface", "actor", "")),  # verl
    (re.compile(r"(?:.*-)?step[-_]?(\d+)"), ("",)),  # Scalpel, and branches of the paper's authors
)


def find_checkpoints(path: Path, where: str) -> dict[int, Path]:
    """Optimizer step -> model directory below a trainer's output directory; also the model that it ends with, where it
    is later than the last checkpoint. One model alone is at the step that its name or trainer_state.json tells, else 1.

    Raises UserError naming what is there instead.
    """
    if not path.is_dir():
        raise UserError(f"{where}: {path} is not a directory; give a trainer's output directory or a saved model.")
    found: dict[int, Path] = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and (step := _step(entry)):
            found[step[0]] = step[1]
    end = _last_step(path)
    if found:
        weights = any(path.glob("*.safetensors")) and (path / "config.json").is_file()
        return found | ({end: path} if weights and end > max(found) else {})
    if (path / "config.json").is_file() or (path / ADAPTER).is_file():
        step = _step(path.resolve())
        return {step[0] if step else end or 1: path}
    raise UserError(
        f"{where}: {path} holds neither checkpoint-<step> (transformers, TRL) nor global_step_<step> (verl) "
        "directories nor a saved model; name the directories in `checkpoints: {<step>: <path>}`."
    )


def _step(directory: Path) -> tuple[int, Path] | None:
    """The step that a directory is called after, and where the model lies in it."""
    for pattern, places in LAYOUTS:
        if match := pattern.fullmatch(directory.name):
            inside = [directory / place for place in places if (directory / place / "config.json").is_file()]
            return int(match[1]), (inside or [directory])[0]
    return None


def _last_step(directory: Path) -> int:
    """The step that the trainer's state of a directory ends with; 0 where there is none."""
    try:
        return int(json.loads((directory / "trainer_state.json").read_text())["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # the log is read later, and what is wrong with it said then


def model_files(directory: Path, where: str = "") -> list[Path]:
    """config.json, safetensors weights and other JSON files of a saved model; UserError when it is not one."""
    where = f"{where}: " if where else ""
    if (directory / ADAPTER).is_file() and not any(directory.glob("model*.safetensors")):
        raise UserError(f"{where}{directory} holds an adapter alone; merge it into its model and save that.")
    if not (directory / "config.json").is_file():
        raise UserError(f"{where}{directory} holds no config.json; give the directory of a saved Hugging Face model.")
    found = [path for path in sorted(directory.iterdir()) if path.suffix in (".safetensors", ".json")]
    if not any(path.suffix == ".safetensors" and not path.name.startswith("adapter") for path in found):
        if any(path.name.startswith("adapter") for path in directory.iterdir()):
            raise UserError(f"{where}{directory} holds an adapter alone; merge it into its model and save that.")
        pickled = [path.name for path in sorted(directory.rglob("*")) if path.suffix in (".bin", ".pt", ".pth")]
        if pickled:
            raise UserError(
                f"{where}{directory} holds pickled weights alone ({pickled[0]}), which are never read; convert them to "
                "safetensors with the framework that wrote them (verl: python -m verl.model_merger merge; DeepSpeed: "
                "zero_to_fp32.py --safe_serialization)."
            )
        raise UserError(f"{where}{directory} holds no .safetensors weights; convert the model with save_pretrained.")
    return found


def tokenizer_files(directory: Path, templates: bool) -> list[Path]:
    """Files of a saved model's tokenizer that are no JSON, and its chat templates, if they are asked for."""
    found = [
        path for path in directory.iterdir() if path.suffix == ".model" or path.name in ("merges.txt", "vocab.txt")
    ]
    if templates:
        found += [*directory.glob("*.jinja"), *directory.glob("additional_chat_templates/*.jinja")]
    return sorted(found)


def template_files(directory: Path) -> list[Path]:
    """The files that a saved model's own chat template may stand in, the one that counts first."""
    return [directory / name for name in TEMPLATE_FILES if (directory / name).is_file()]


def own_template(directory: Path, where: str = "") -> str:
    """The chat template that lies with a saved model, ``default`` where it has several; UserError when none does."""
    where = f"{where}: " if where else ""
    for path in template_files(directory):
        try:
            text = path.read_text()
            found = text if path.suffix == ".jinja" else json.loads(text).get("chat_template")
        except (ValueError, AttributeError):
            raise UserError(f"{where}{path} is damaged: it holds no JSON object; save the tokenizer again.") from None
        if isinstance(found, list):  # [{"name": ..., "template": ...}]
            found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
        if isinstance(found, str) and found:
            return found
    raise UserError(f"{where}{directory} holds no chat template of its own; name another in `chat_template`.")


def read_revisions(root: Path) -> dict[str, str]:
    """``<repo>@<branch>`` -> commit hash, of revisions.yaml; empty when there is none."""
    path = root / REVISIONS
    return {str(key): str(value) for key, value in read_yaml(path).items()} if path.is_file() else {}


def write_revisions(root: Path, revisions: dict[str, str]) -> None:
    """Write revisions.yaml."""
    write_atomically(root / REVISIONS, yaml.safe_dump(revisions, sort_keys=True))


def branches(config: Config) -> dict[str, list[str]]:
    """Repository -> the branches that given runs and models in use name."""
    found: dict[str, list[str]] = {}
    for study in config.studies.values():
        used = {study.setting.model, study.setting.base_evaluated_as, *(run.model for run in study.runs.values())}
        for model in (source for name, source in config.scale.models.items() if name in used):
            if isinstance(model, HubModel) and not COMMIT.fullmatch(model.revision):
                found.setdefault(model.repo, []).append(model.revision)
        for run in study.runs.values():
            if isinstance(run.given, HubCheckpoints):
                names = [b for b in run.given.checkpoints.values() if not COMMIT.fullmatch(b)]
                found.setdefault(run.given.repo, []).extend(names)
    return found


def resolved(repo: str, branch: str, revisions: dict[str, str], where: str) -> str:
    """The commit of a branch; UserError that says how to resolve it when it is not known yet."""
    if COMMIT.fullmatch(branch):
        return branch
    commit = revisions.get(f"{repo}@{branch}", "")
    if not COMMIT.fullmatch(commit):
        raise UserError(
            f"{where}: branch {branch!r} of {repo} is not resolved to a commit yet; run `make resolve` on a node with "
            f"network, which writes {REVISIONS}."
        )
    return commit
