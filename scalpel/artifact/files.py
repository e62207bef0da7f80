"""Names of a result's own files, and reading and writing them so that no half file is ever seen."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from scalpel.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
RECIPE, MANIFEST, PROVENANCE = "recipe.json", "manifest.json", "provenance.json"
FINISHED = "finished.json"  # the manifest once more, and the sha256 of the inputs' manifests
LEASE = "lease"  # lease.<token>.json: who makes the result now
STATE = "state"  # what a resumable stage resumes from; never part of a result
OWN_FILES = {RECIPE, MANIFEST, PROVENANCE, FINISHED}


def read_json(path: Path) -> dict:
    """Parsed JSON object; UserError naming the file when it is absent or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run snakemake once so that it is written.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not valid JSON (truncated?); delete its directory and run again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; delete its directory and run again.")
    return value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write through a temporary file of the same directory, synced, so that no half file is ever seen."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
