"""A base model from a local directory or the hub, put into the form every stage reads."""

import json
import shutil
from pathlib import Path

from scalpel.artifact import sha256_file
from scalpel.chat import TEMPLATE
from scalpel.errors import UserError


def import_model(source: Path, out: Path, expected: dict[str, str] | None = None) -> None:
    """Copy config, safetensors weights and tokenizer of `source` to `out`, with the one chat template.

    Weights are safetensors only: nothing that others pickled is read, and no remote code runs.
    `expected` maps file names to the sha256 that the plan saw; a file changed since then is an error.
    """
    config = source / "config.json"
    if not config.is_file():
        raise UserError(f"{source} holds no config.json; give the directory of a saved Hugging Face model.")
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{source} holds no .safetensors weights; convert the model with save_pretrained first.")
    for name, digest in (expected or {}).items():
        if sha256_file(source / name) != digest:
            raise UserError(f"{source / name} changed since the run was planned; start snakemake again.")
    out.mkdir(parents=True, exist_ok=True)
    for path in [config, *weights, *source.glob("*.safetensors.index.json")]:
        shutil.copyfile(path, out / path.name)
    _generation_config(source, out)

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None or tokenizer.eos_token is None:
        raise UserError(
            f"{source}: the tokenizer lacks a pad or an EOS token; training needs both, set them and save it."
        )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)


def _generation_config(source: Path, out: Path) -> None:
    """The model's generation_config.json with sampling on: LightEval does not sample without do_sample."""
    path = source / "generation_config.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    (out / "generation_config.json").write_text(json.dumps(content | {"do_sample": True}, indent=2) + "\n")
