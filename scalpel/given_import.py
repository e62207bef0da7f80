"""Checkpoints made elsewhere put into the form of a trained run: checkpoints/, checkpoints.json, log.parquet.

Weights are linked where the file system can, else copied; tokenizer, template and generation settings are the base
model's, so that all stages render alike; a run that names a chat template is laid out once more with that. What the
trainer logged is read from trainer_state.json where there is one.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.analysis.tensors import open_tensors
from scalpel.artifact.checking import unchanged
from scalpel.artifact.files import write_atomically
from scalpel.chat import check_template, load_tokenizer
from scalpel.errors import UserError
from scalpel.given import model_files, own_template
from scalpel.inference.requests import end_tokens
from scalpel.progress import track

COLUMNS = {  # names in the logs of transformers and TRL -> names in log.parquet
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "mean_token_accuracy",
    "reward": "reward",
    "completion_length": "completion_length",  # of TRL before 0.16, which has the next instead
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated_fraction",
}
SEEN = "num_tokens"  # TRL's count of tokens since the start of training
ALIKE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def take_in(
    sources: dict[int, Path], base: Path, recipe: dict, out: Path, output: str | None, own: Path | None = None
) -> None:
    """Lay the model directories `sources` (by optimizer step) out in `out`.

    base: the base model. recipe: the step's, with the files' sha256 as the plan saw them and, if known,
    questions_per_step, tokens_per_step and written_per_step; its chat_template takes the place of the base model's,
    None standing for the one that lies in `own`. output: the trainer's output directory, which may hold its log.
    Raises UserError naming the checkpoint that changed since the plan or is not one of this base model.
    """
    listing = []
    template = _template(recipe, own) if "chat_template" in recipe else None
    with ExitStack() as stack:
        wanted = {name: stored.shape for name, stored in open_tensors(base, stack).items()}
    for index, (step, source) in enumerate(track(sorted(sources.items()), "checkpoints taken in"), start=1):
        target = out / "checkpoints" / f"step-{step:06d}"
        target.mkdir(parents=True, exist_ok=True)
        planned = recipe.get("files", {}).get(str(step), {})
        with unchanged({source / name: digest for name, digest in planned.items()}):
            _check_shapes(source, wanted, base)
            for path in model_files(source):
                if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
                    _link(path, target / path.name)
            shutil.copyfile(source / "config.json", target / "config.json")
            _check_config(source / "config.json", base / "config.json")
        for path in base.iterdir():
            if path.suffix != ".safetensors" and not path.name.endswith(".index.json") and path.name != "config.json":
                shutil.copyfile(path, target / path.name)
        if template is not None:
            put_template(target, template)
        listing.append({"index": index, "step": step, "path": f"checkpoints/{target.name}"})
    last = max(sources)
    states = [directory / "trainer_state.json" for directory in (sources[last], *([Path(output)] if output else []))]
    log = next((read_log(path, recipe) for path in states if path.is_file()), None)
    if log is None and _sizes(recipe):
        log = [{"step": step} | _sizes(recipe) for step in range(1, last + 1)]
    if log:
        pq.write_table(pa.Table.from_pylist(log), out / "log.parquet", compression="zstd")
    write_atomically(out / "checkpoints.json", json.dumps(listing, indent=1) + "\n")


def _template(recipe: dict, own: Path | None) -> str:
    """The text of the recipe's chat template; UserError when its file changed since the plan, or none is there."""
    if recipe["chat_template"] is not None:
        return recipe["chat_template"]
    assert own is not None
    with unchanged({own / name: digest for name, digest in recipe.get("template", {}).items()}):
        return own_template(own)


def put_template(model: Path, template: str) -> None:
    """Give a saved model, whose tokenizer is its base model's, another chat template.

    A special token that ends the template's turns ends completions, too: generation_config.json names it beside EOS.
    Raises UserError for a template that the stages cannot render by.
    """
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = template
    ends = check_template(tokenizer, f"{model}: the run's `chat_template`", trained=False)
    tokenizer.save_pretrained(model)
    path = model / "generation_config.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    known = end_tokens(content.get("eos_token_id"), tokenizer.eos_token_id)
    if ends - known:
        write_atomically(path, json.dumps(content | {"eos_token_id": sorted(known | ends)}, indent=2) + "\n")


def read_log(path: Path, recipe: dict) -> list[dict]:
    """Rows of log.parquet from a trainer_state.json: one for every logged step; UserError when it is damaged."""
    try:
        history = [
            entry for entry in json.loads(path.read_text())["log_history"] if "loss" in entry and "step" in entry
        ]
        rows, seen, before = [], 0.0, 0
        for entry in history:
            row = {"step": entry["step"]} | dict.fromkeys(COLUMNS.values())
            row |= {COLUMNS[old]: value for old, value in entry.items() if old in COLUMNS}
            rewards = {_reward(name): value for name, value in entry.items() if _is_mean_reward(name)}
            if "reward" not in entry:
                row["written"] = 0  # supervised: nothing was sampled
            row |= rewards | _sizes(recipe, entry["step"] - before)
            if SEEN in entry and "tokens_per_step" not in recipe:
                row["tokens"] = entry[SEEN] - (seen if entry[SEEN] >= seen else 0)  # a resumed run counts from 0
                seen = entry[SEEN]
            before = entry["step"]
            rows.append(row)
        return rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: it holds no log_history; replace it or take it away.") from None


def _is_mean_reward(name: str) -> bool:
    """TRL's ``rewards/<function>/mean``, before 0.16 without the last; those of DPO are of pairs, and others."""
    parts = name.split("/")
    whole = len(parts) == 3 and parts[2] == "mean"
    before = len(parts) == 2 and parts[1] not in ("chosen", "rejected", "margins", "accuracies")
    return parts[0] == "rewards" and (whole or before)


def _reward(name: str) -> str:
    """``accuracy_reward``, whether the function was called so or ``accuracy``."""
    return name.split("/")[1].removesuffix("_reward") + "_reward"


def _sizes(recipe: dict, steps: int = 1) -> dict:
    """What the config says of each step; a logged row may stand for several."""
    names = {"questions_per_step": "questions", "tokens_per_step": "tokens", "written_per_step": "written"}
    return {new: recipe[old] * steps for old, new in names.items() if recipe.get(old) is not None}


def _check_shapes(source: Path, wanted: dict[str, tuple[int, ...]], base: Path) -> None:
    """UserError when a checkpoint's tensors are not those of the base model."""
    with ExitStack() as stack:
        there = {name: stored.shape for name, stored in open_tensors(source, stack).items()}
    absent = sorted(set(wanted) - set(there) - {"lm_head.weight"})
    if absent:
        raise UserError(f"{source} lacks tensor {absent[0]}, which {base} has; it is no checkpoint of this base model.")
    other = [name for name, shape in there.items() if name in wanted and wanted[name] != shape]
    if other:
        raise UserError(
            f"{source}: tensor {other[0]} has shape {list(there[other[0]])}, in {base} {list(wanted[other[0]])}; "
            "it is no checkpoint of this base model: name its own in the run's `model`."
        )


def _check_config(path: Path, base: Path) -> None:
    """UserError when config.json differs from the base model's where that would change what the weights mean."""
    try:
        mine, theirs = json.loads(path.read_text()), json.loads(base.read_text())
        if not isinstance(mine, dict):
            raise ValueError
    except ValueError:
        raise UserError(f"{path} holds no JSON object; save the model again.") from None
    for field in ALIKE:
        if field in mine and field in theirs and mine[field] != theirs[field]:
            raise UserError(f"{path}: {field} is {mine[field]}, of the base model {theirs[field]}.")
    if rope_theta(mine) != rope_theta(theirs):
        raise UserError(
            f"{path}: rope_theta is {rope_theta(mine)}, of the base model {rope_theta(theirs)}; "
            "give the base model the same in `config_edits`."
        )


def rope_theta(config: dict) -> float | None:
    """rope_theta of a config.json, wherever the version of transformers that wrote it keeps it."""
    rope = config.get("rope_parameters") or {}
    return config.get("rope_theta", rope.get("rope_theta"))


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
