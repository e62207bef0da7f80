"""A base model from a local directory or the hub, put into the form every stage reads."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

from scalpel.analysis.tensors import open_tensors
from scalpel.artifact.checking import unchanged
from scalpel.chat import check_template
from scalpel.errors import UserError


def import_model(
    source: Path, out: Path, template: str | None, edits: dict, expected: dict[str, str] | None = None
) -> None:
    """Copy config, safetensors weights and tokenizer of `source` to `out`, with the named chat template.

    Weights are safetensors only: nothing that others pickled is read, and no remote code runs.
    template: Jinja text; None keeps the model's own. edits: fields of config.json to change.
    expected: sha256 by file name as the plan saw them; a file changed since then is an error.
    """
    config = source / "config.json"
    if not config.is_file():
        raise UserError(f"{source} holds no config.json; give the directory of a saved Hugging Face model.")
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{source} holds no .safetensors weights; convert the model with save_pretrained first.")
    out.mkdir(parents=True, exist_ok=True)
    with unchanged({source / name: digest for name, digest in (expected or {}).items()}):
        _copy(source, weights, out, template, edits)


def _copy(source: Path, weights: list[Path], out: Path, template: str | None, edits: dict) -> None:
    with ExitStack() as stack:
        open_tensors(source, stack)  # says which file is damaged
    for path in [source / "config.json", *weights, *source.glob("*.safetensors.index.json")]:
        shutil.copyfile(path, out / path.name)
    _object(source / "config.json")
    edit_config(out, edits)
    _generation_config(source, out)

    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers and tokenizers raise
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{source}: its tokenizer cannot be read ({why[:200]}).") from None
    if tokenizer.eos_token is None:
        raise UserError(f"{source}: the tokenizer lacks an EOS token; training needs it, set it and save it.")
    if tokenizer.pad_token is None:
        raise UserError(f"{source}: the tokenizer lacks a pad token; training needs it, set it and save it.")
    if template is not None:
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        raise UserError(f"{source}: the tokenizer has no chat template of its own; name one in its `chat_template`.")
    check_template(tokenizer, str(source))
    tokenizer.save_pretrained(out)


def edit_config(directory: Path, edits: dict) -> None:
    """Change fields of a saved model's config.json; rope_theta also where newer versions of transformers keep it."""
    if not edits:
        return
    path = directory / "config.json"
    config = json.loads(path.read_text()) | edits
    rope = config.get("rope_parameters")
    if "rope_theta" in edits and isinstance(rope, dict):
        config["rope_parameters"] = rope | {"rope_theta": edits["rope_theta"]}
    path.write_text(json.dumps(config, indent=2) + "\n")


def _object(path: Path) -> dict:
    """The JSON object in a file of the user's."""
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise UserError(f"{path} holds no JSON object; save the model again.")


def _generation_config(source: Path, out: Path) -> None:
    """The model's generation_config.json with sampling on: LightEval does not sample without do_sample."""
    path = source / "generation_config.json"
    content = _object(path) if path.is_file() else {}
    (out / "generation_config.json").write_text(json.dumps(content | {"do_sample": True}, indent=2) + "\n")
