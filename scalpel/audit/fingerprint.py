"""What an audit holds for: the installed packages, and how a run shares its work. Nothing here imports torch."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, cast

from scalpel.artifact.files import RECIPE, read_json
from scalpel.artifact.provenance import versions
from scalpel.config.training import MethodRecipe, TrainSettings
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.methods.rollout_recipe import RolloutRecipe

PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "tokenizers", "safetensors")
OF_LOSS = {"method", "inference", "temperature", "mask_truncated_completions"}  # of what all that sample have
MANY = 4  # micro-batches that stand for any number above two: the known bugs tell 1, 2 and more apart


def fingerprint(settings: TrainSettings, recipe: MethodRecipe) -> dict:
    """Packages and Python as installed here, and the engine, offload, ranks and accumulation of a run.

    Of a method that samples also `rollouts`: the fields that decide its loss, and who writes its completions.
    """
    ranks = settings.ranks * settings.nodes
    accumulation = METHODS[recipe.method].accumulation(recipe, settings.sequences_per_device, ranks)
    seal: dict[str, Any] = {
        "packages": versions(PACKAGES),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "engine": settings.engine,
        "offload": settings.offload,
        "ranks": ranks,
        "accumulation": min(accumulation, MANY) if accumulation != 3 else MANY,
    }
    if METHODS[recipe.method].samples:
        of_all = RolloutRecipe.model_fields.keys() - OF_LOSS
        seal["rollouts"] = {name: value for name, value in recipe.identity().items() if name not in of_all}
        seal["packages"] |= versions((cast("RolloutRecipe", recipe).inference,))
    return seal


def refuse_other_stack(gate: Path) -> None:
    """UserError when this node's packages are not those that the audit in `gate` was made with."""
    audited = read_json(gate / RECIPE)["recipe"]["fingerprint"]
    here = versions({*PACKAGES, *audited["packages"]})
    for package in sorted({*audited["packages"], *here}):
        then, now = audited["packages"].get(package, "none"), here.get(package, "none")
        if then != now:
            raise UserError(
                f"{gate.name} audited {package} {then}, this node has {now}: start snakemake again where the jobs' "
                "environment is, so that the stack that trains is the one that was audited."
            )
