"""What a plan is made of beside steps: runs with their seeds, results as exhibits see them, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from scalpel.artifact.identity import digest_of
from scalpel.artifact.step import Step
from scalpel.config.study import RunSpec
from scalpel.config.types import BASE
from scalpel.stages import EXHIBIT, REPORT, SHOWN


@dataclass(frozen=True)
class Run:
    """One run of a study with one seed: where its checkpoints come from."""

    study: str
    name: str
    seed: int
    spec: RunSpec
    base: Step
    checkpoints: Step  # of stage train or given
    asked: Step  # the same, with the chat template by which the run is asked and its KL is taken
    steps: tuple[int, ...] | None  # the checkpoints' optimizer steps; None: not known before training
    count: int  # of checkpoints
    start: Run | None = None
    answers: Step | None = None  # of stage generate: what it is trained on in place of traces

    @property
    def label(self) -> str:
        """In names of results: the run's name, and its seed where there are several."""
        return self.name if len(self.spec.seeds) == 1 else f"{self.name}.s{self.seed}"

    @property
    def chain(self) -> list[Step]:
        """What was spent before this run's own training: generated answers and earlier runs, the first one first."""
        before = [*self.start.chain, self.start.checkpoints] if self.start else []
        return [*before, *([self.answers] if self.answers else [])]


class Entry(NamedTuple):
    """One result as exhibits and claims see it: whose it is, and which part of it.

    part: the group of benchmarks, or the measure of KL. reference: what a checkpoint is compared with, base or start.
    """

    stage: str
    run: str
    seed: int
    step: Step
    part: str = ""
    shard: int = 1
    reference: str = BASE
    chain: tuple[Step, ...] = ()

    def identity(self) -> dict:
        """What enters the digest of an exhibit that shows it."""
        where = {"run": self.run, "seed": self.seed, "part": self.part, "shard": self.shard}
        return where | {
            "stage": self.stage,
            "reference": self.reference,
            "digest": self.step.digest,
            "chain": [step.digest for step in self.chain],
        }

    def record(self) -> dict:
        """What the exhibit's recipe file holds."""
        return self._asdict() | {"step": self.step.directory, "chain": [step.directory for step in self.chain]}


@dataclass(frozen=True)
class Drawing:
    """An exhibit or a report: stable file names, and a digest that changes when its content would."""

    study: str
    name: str
    recipe: dict
    entries: tuple[Entry, ...]
    files: tuple[str, ...]  # that it writes, below the working directory
    exhibits: tuple[Drawing, ...] = ()  # that a report shows

    @property
    def digest(self) -> str:
        stage = REPORT if self.name == REPORT else EXHIBIT
        recipe = {"study": self.study, "name": self.name, **self.recipe, "of": [e.identity() for e in self.entries]}
        return digest_of(stage, SHOWN[stage], recipe, {})

    @property
    def folder(self) -> str:
        """Of its files: figures, tables or report."""
        return self.files[0].split("/")[1]

    @property
    def recipe_path(self) -> str:
        """Its recipe, written when a run starts: the argument of the program that draws it."""
        return f"results/configs/exhibits/{self.study}.{self.name}-{self.digest}.json"

    @property
    def record_path(self) -> str:
        """The .json beside the files that says what they show (scalpel/exhibits/record.py); written last."""
        return str(PurePosixPath(self.files[0]).with_suffix(".json"))

    @property
    def outputs(self) -> list[str]:
        """All that its program writes."""
        return [*self.files, self.record_path]

    @property
    def steps(self) -> list[Step]:
        """The results it shows, each once."""
        return list({step.digest: step for entry in self.entries for step in (entry.step, *entry.chain)}.values())

    @property
    def inputs(self) -> list[str]:
        """Files that must be there before it is drawn."""
        return [*(step.manifest for step in self.steps), *(file for other in self.exhibits for file in other.outputs)]

    def record(self) -> dict:
        return {
            "study": self.study,
            "name": self.name,
            "digest": self.digest,
            "recipe": self.recipe,
            "entries": [entry.record() for entry in self.entries],
            "files": self.files,
            "record": self.record_path,
            "shows": [*(step.directory for step in self.steps), *(other.record_path for other in self.exhibits)],
        }
