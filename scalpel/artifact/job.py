"""A step opened by the program that makes it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from scalpel.artifact.checking import checked, manifest_of
from scalpel.artifact.files import MANIFEST, RECIPE, below, read_json, results_of
from scalpel.artifact.identity import digest_of
from scalpel.errors import Passing, UserError
from scalpel.launch import slurm

LATE_SECONDS = 60.0  # that a shared file system may take to show another node's files


@dataclass(frozen=True)
class Job:
    """A step opened by the program that makes it. `inputs` and `gates` map each role to a finished directory."""

    directory: Path
    stage: str
    name: str
    digest: str
    recipe: dict
    inputs: dict[str, Path]
    gates: dict[str, Path]
    settings: dict

    def file(self, role: str, *name: str) -> Path:
        """A file of an input, hashed against the input's manifest first."""
        return checked(self.inputs[role].joinpath(*name))

    def recipe_of(self, role: str) -> dict:
        """What an input was made by."""
        return manifest_of(self.inputs[role])["recipe"]

    def inputs_of(self, kind: str) -> dict[str, Path]:
        """The inputs whose role is ``<kind>/...``, keyed by what follows the slash."""
        return {role.split("/", 1)[1]: path for role, path in self.inputs.items() if role.startswith(kind + "/")}


def open_job(directory: Path) -> Job:
    """Read recipe.json and check that it is what the directory's name says and that inputs and gates are finished.

    Raises UserError with one sentence otherwise.
    """
    wait_until_shown(directory / RECIPE)
    recorded = read_json(directory / RECIPE)
    try:
        digest = digest_of(
            recorded["stage"],
            recorded["version"],
            recorded["recipe"],
            {role: item["digest"] for role, item in recorded["inputs"].items()},
        )
        results = results_of(directory, 2)
        job = Job(
            directory=directory,
            stage=recorded["stage"],
            name=recorded["name"],
            digest=digest,
            recipe=recorded["recipe"],
            inputs={role: below(results, item["directory"]) for role, item in recorded["inputs"].items()},
            gates={role: below(results, item["directory"]) for role, item in recorded.get("gates", {}).items()},
            settings=recorded["settings"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        missing = f"lacks {error}" if isinstance(error, KeyError) else "is damaged"
        raise UserError(f"{directory / RECIPE} {missing}; move the directory aside and run snakemake again.") from None
    if not directory.resolve().name.endswith(f"-{digest}"):
        raise UserError(
            f"{directory} holds the recipe of {job.name}-{digest}; it was moved or edited: "
            "move it aside and run snakemake again."
        )
    for role, path in (job.inputs | job.gates).items():
        if not wait_until_shown(path / MANIFEST):
            raise Passing(f"{directory.name} needs {role} in {path}, which is not finished; run snakemake for it.")
        expected = (recorded["inputs"] | recorded.get("gates", {}))[role]["digest"]
        if not path.name.endswith("-" + expected):
            raise UserError(f"{directory / RECIPE}: input {role} points at {path}, another digest.")
    return job


def wait_until_shown(path: Path) -> bool:
    """Whether a file is there; in a SLURM job, after waiting for a shared file system that shows it late."""
    end = time.monotonic() + (LATE_SECONDS if slurm.job() else 0)
    while not path.is_file():
        if time.monotonic() >= end:
            return False
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes NFS ask the server again
        time.sleep(0.5)
    return True
