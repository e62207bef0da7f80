"""Weights of a finished run that were removed on purpose (`make retire`): retired.json beside its manifest.

The manifest stays as it is, so that sizes and hashes of all files are kept and nothing that was made of the run loses
its name. retired.json says which of those files may be absent; it is written, and on the disk, before the first is
removed, so that whatever ends the removal leaves a run that is whole by its own record.
"""

from __future__ import annotations

import json
from pathlib import Path

from scalpel.artifact.files import RETIRED, read_json, write_atomically
from scalpel.errors import UserError


def retired_files(directory: Path) -> dict[str, dict]:
    """Name -> size and sha256 of the files of a result that were retired; UserError when the record is damaged."""
    path = directory / RETIRED
    if not path.is_file():
        return {}
    try:
        files = read_json(path)["files"]
        if all(set(item) == {"bytes", "sha256"} for item in files.values()):
            return files
    except (UserError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is damaged: it does not say which files were retired.")


def retired_problems(directory: Path, listed: dict[str, dict]) -> list[str]:
    """What is wrong with the record itself; `listed`: the files of the result's manifest."""
    try:
        files = retired_files(directory)
    except UserError as error:
        return [str(error)]
    return [
        f"{directory / RETIRED}: {name} is not what the manifest says of it"
        for name, item in files.items()
        if listed.get(name) != item
    ]


def record_retired(directory: Path, files: dict[str, dict]) -> None:
    """Write which files are retired, beside those that were before."""
    content = {"files": dict(sorted((retired_files(directory) | files).items()))}
    write_atomically(directory / RETIRED, json.dumps(content, indent=1) + "\n")
