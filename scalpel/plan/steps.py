"""The steps of a plan by digest: one result under one name, however often it is asked for."""

from __future__ import annotations

from pathlib import Path

from scalpel.artifact.files import MANIFEST, RECIPE
from scalpel.artifact.step import Step
from scalpel.config.scale import Scale, StageResources
from scalpel.stages import STAGES


class Steps:
    """Steps by digest, and what the scale reserves for their stages. root: the working directory of the workflow."""

    def __init__(self, scale: Scale, root: Path):
        self.scale, self.root = scale, root
        self.by_digest: dict[str, Step] = {}
        self._names: dict[str, dict[str, str]] = {}

    def add(
        self, stage: str, name: str, recipe: dict, inputs: dict[str, Step] | None = None, settings: dict | None = None,
        version: int | None = None, gates: dict[str, Step] | None = None,
    ) -> Step:  # fmt: skip
        """The step, or the one that is the same under another name: in this plan, or lying in results/."""
        gpus = self.resources(stage).gpus
        settings = (settings or {}) | ({"gpus": gpus} if gpus else {})  # each job checks them first
        version = version or STAGES[stage].version
        step = Step(stage, name, version, recipe, inputs or {}, settings, gates or {})
        known = self.by_digest.get(step.digest)
        if known is None:
            made = self._names_on_disk(stage).get(step.digest)
            if made not in (None, name):
                step = Step(stage, made, version, recipe, inputs or {}, settings, gates or {})
            known = self.by_digest[step.digest] = step
        return known

    def resources(self, stage: str) -> StageResources:
        """What the scale reserves for one job of the stage."""
        return self.scale.resources.get(stage, StageResources())

    def threads(self, stage: str) -> dict[str, int]:
        """Settings of a stage whose program takes nothing but its number of threads."""
        return {"threads": self.resources(stage).threads}

    def _names_on_disk(self, stage: str) -> dict[str, str]:
        """Digest -> name of the results of a stage that lie in results/, finished ones first."""
        if stage not in self._names:
            found: dict[str, str] = {}
            for path in sorted(self.root.glob(f"results/{stage}/*-*/{RECIPE}")):
                name, _, digest = path.parent.name.rpartition("-")
                if digest not in found or (path.parent / MANIFEST).is_file():
                    found[digest] = name
            self._names[stage] = found
        return self._names[stage]
