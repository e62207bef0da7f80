"""Finished results made of given files, as a stage leaves them."""

import json
import shutil
from pathlib import Path

from scalpel.artifact.files import RECIPE
from scalpel.artifact.manifest import seal
from scalpel.artifact.step import Step, record_recipe


def finish(step: Step, root: Path, files: dict[str, Path | str]) -> Path:
    """The directory of a finished result of `step`, with copies of these files or folders, or these texts."""
    record_recipe(step, root)
    directory = root / step.directory
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path) and content.is_dir():
            shutil.copytree(content, directory / name)
        elif isinstance(content, Path):
            shutil.copyfile(content, directory / name)
        else:
            (directory / name).write_text(content)
    recorded = json.loads((directory / RECIPE).read_text())
    seal(directory, recorded, {role: root / other.directory for role, other in step.inputs.items()})
    return directory
