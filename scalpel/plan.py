"""Config -> every result with its recipe, digest, directory and inputs. The Snakefile looks things up here.

Nothing here imports torch or writes, `Plan.freeze` aside, which the Snakefile calls when a run starts.
Raise a stage's number in VERSIONS when the meaning of its results changes: all its digests follow.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from scalpel import figures
from scalpel.artifact import MANIFEST, RECIPE, Step, digest_of, freeze, read_json, sha256_file, write_atomically
from scalpel.config import (
    Config,
    HubDataset,
    HubModel,
    LocalModel,
    ParquetSource,
    StageResources,
    ToyModel,
    ToySource,
)
from scalpel.config import freeze as freeze_config
from scalpel.errors import UserError

VERSIONS = {
    "fetch": 1,
    "toy": 1,
    "base": 1,
    "evaluation_data": 1,
    "data": 1,
    "order": 1,
    "train": 1,
    "evaluate": 2,
    "kl": 1,
    "weight_change": 1,
    "figure": 1,
    "report": 1,
}


@dataclass(frozen=True)
class Drawing:
    """A figure or a report: stable file names, and a digest that changes when its content would."""

    study: str
    name: str
    recipe: dict
    inputs: dict[str, list[Step]]  # "stage/run" -> results

    @property
    def digest(self) -> str:
        stage = "report" if self.name == "report" else "figure"
        inputs = {f"{role}/{i}": step.digest for role, steps in self.inputs.items() for i, step in enumerate(steps)}
        return digest_of(stage, VERSIONS[stage], {"study": self.study, "name": self.name, **self.recipe}, inputs)

    @property
    def recipe_path(self) -> str:
        return f"results/figures/{self.study}/recipes/{self.name}-{self.digest}.json"

    @property
    def manifests(self) -> list[str]:
        return [f"{step.directory}/{MANIFEST}" for steps in self.inputs.values() for step in steps]

    def frozen(self) -> dict:
        inputs = {role: [step.directory for step in steps] for role, steps in self.inputs.items()}
        return {"study": self.study, "name": self.name, "digest": self.digest, "recipe": self.recipe, "inputs": inputs}


class Plan:
    """All results of one config. `steps` holds them by digest, `drawings` by (study, name)."""

    def __init__(self, config: Config, workflow: Path, root: Path = Path(".")):
        self.config, self.workflow, self.root = config, workflow, root
        self.steps: dict[str, Step] = {}
        self.drawings: dict[tuple[str, str], Drawing] = {}
        self.toy = self._toy()
        self.base = self._base()
        self.evaluation_data = self._evaluation_data()
        self.data = self._data()
        self.order = self._step("order", "order", config.scale.order.model_dump(mode="json"), {"data": self.data})
        self.train = {name: self._train(name) for name in config.runs}
        self.results: dict[str, list[Step]] = self._results()
        for study in config.studies:
            self._draw(study)

    # ------------------------------------------------------------ building

    def _step(self, stage: str, name: str, recipe: dict, inputs: dict[str, Step], settings: dict | None = None) -> Step:
        gpus = self.resources_of_stage(stage).gpus
        settings = (settings or {}) | ({"gpus": gpus} if gpus else {})  # each job checks them first
        step = Step(stage, name, VERSIONS[stage], recipe, inputs, settings)
        known = self.steps.setdefault(step.digest, step)
        if known.stage != stage or known.name != name:
            raise UserError(f"{stage} {name} and {known.stage} {known.name} have the same digest; rename one.")
        return known

    def _toy(self) -> Step | None:
        scale = self.config.scale
        parts = (scale.model, scale.source, scale.evaluation_files)
        if all(part.kind != "toy" for part in parts):
            return None
        return self._step("toy", "world", scale.world.model_dump(mode="json"), {})

    def _base(self) -> Step:
        model = self.config.scale.model
        threads = self.resources_of_stage("base").threads
        if isinstance(model, ToyModel):
            recipe = {"kind": "toy"} | model.toy.model_dump(mode="json")
            return self._step("base", "base", recipe, {"toy": self.toy}, {"threads": threads})
        if isinstance(model, HubModel):
            fetched = self._step(
                "fetch", "model", {"type": "model", "repo": model.repo, "revision": model.revision}, {}
            )
            return self._step("base", "base", {"kind": "fetched"}, {"fetch": fetched})
        assert isinstance(model, LocalModel)
        if not model.path.is_dir():
            raise UserError(f"model.path: {model.path} is not a directory; point it at a saved model.")
        files = {p.name: file_digest(p) for p in sorted(model.path.iterdir()) if p.suffix in (".safetensors", ".json")}
        return self._step("base", "base", {"kind": "local", "files": files}, {}, {"path": str(model.path.resolve())})

    def _file(self, field: str, path: Path) -> str:
        if not path.is_file():
            raise UserError(f"{field}: {path} does not exist; give the path of a parquet file.")
        return file_digest(path)

    def _fetch_dataset(self, name: str, source: HubDataset) -> Step:
        recipe = {"type": "dataset"} | source.model_dump(mode="json", exclude={"kind"})
        return self._step("fetch", name, recipe, {})

    def _evaluation_data(self) -> Step:
        scale = self.config.scale
        if scale.evaluation_files.kind == "toy":
            return self._step("evaluation_data", "questions", {"kind": "toy"}, {"toy": self.toy})
        recipe, inputs, paths = {}, {}, {}
        for name, where in scale.evaluation_files.files.items():
            if isinstance(where, HubDataset):
                inputs[f"fetch/{name}"] = self._fetch_dataset(name, where)
            else:
                recipe[name] = self._file(f"evaluation_files.files.{name}", where)
                paths[name] = str(where.resolve())
        return self._step("evaluation_data", "questions", {"kind": "files", "sha256": recipe}, inputs, {"paths": paths})

    def _data(self) -> Step:
        scale, source = self.config.scale, self.config.scale.source
        inputs = {"base": self.base, "evaluation_data": self.evaluation_data}
        recipe: dict = {"filter": scale.filter.model_dump(mode="json")}
        settings = {}
        if isinstance(source, ToySource):
            inputs["toy"] = self.toy
            recipe["source"] = {"kind": "toy"}
        elif isinstance(source, HubDataset):
            inputs["fetch"] = self._fetch_dataset("training_rows", source)
            recipe["source"] = {"kind": "hub"}
        else:
            assert isinstance(source, ParquetSource)
            recipe["source"] = source.model_dump(mode="json", exclude={"path"})
            recipe["source"]["sha256"] = self._file("source.path", source.path)
            settings["path"] = str(source.path.resolve())
        return self._step("data", "questions", recipe, inputs, settings)

    def _train(self, run: str) -> Step:
        recipe = self.config.runs[run].model_dump(mode="json")
        inputs = {"base": self.base, "data": self.data, "order": self.order}
        return self._step("train", run, recipe, inputs, self.config.scale.train_settings.model_dump(mode="json"))

    def _results(self) -> dict[str, list[Step]]:
        """Every analysable result by role: "train/grpo", "evaluate/base", "kl/sft_1ep", ..."""
        scale = self.config.scale
        results: dict[str, list[Step]] = {"data/data": [self.data], "base/base": [self.base]}
        evaluation = scale.evaluation.model_dump(mode="json")
        settings = scale.evaluation_settings.model_dump(mode="json")
        questions = {"evaluation_data": self.evaluation_data}
        results["evaluate/base"] = [
            self._step("evaluate", "base", evaluation | {"checkpoints": []}, {"base": self.base} | questions, settings)
        ]
        for run, train in self.train.items():
            results[f"train/{run}"] = [train]
            count = train.recipe["checkpoints"]
            shards = min(scale.evaluation_shards, count)
            bounds = [round(i * count / shards) for i in range(shards + 1)]
            results[f"evaluate/{run}"] = [
                self._step(
                    "evaluate",
                    f"{run}.{i + 1}of{shards}",
                    evaluation | {"checkpoints": list(range(bounds[i] + 1, bounds[i + 1] + 1))},
                    {"train": train} | questions,
                    settings,
                )
                for i in range(shards)
            ]
            pair = {"base": self.base, "train": train}
            results[f"kl/{run}"] = [
                self._step(
                    "kl",
                    run,
                    scale.kl.model_dump(mode="json"),
                    pair | questions,
                    scale.kl_settings.model_dump(mode="json"),
                )
            ]
            threads = {"threads": self.resources_of_stage("weight_change").threads}
            results[f"weight_change/{run}"] = [self._step("weight_change", run, {}, pair, threads)]
        return results

    def _draw(self, study_name: str) -> None:
        study = self.config.studies[study_name]
        for name, options in study.figures.items():
            valid = figures.options(options, f"{study_name}.yaml: figures.{name}")
            roles = figures.needs(name, list(study.runs), valid.runs)
            missing = [role for role in roles if role not in self.results]
            if missing:
                raise UserError(
                    f"{study_name}.yaml: figure {name!r} needs {missing[0]}, which no run of the study makes."
                )
            recipe = {"options": valid.model_dump(mode="json")}
            inputs = {role: self.results[role] for role in roles}
            self.drawings[study_name, name] = Drawing(study_name, name, recipe, inputs)
        drawn = {name: drawing.digest for (owner, name), drawing in self.drawings.items() if owner == study_name}
        published = {}
        if study.published:
            path = self.workflow / "published" / study.published
            if not path.is_file():
                raise UserError(f"{study_name}.yaml: published: {path} does not exist.")
            published = yaml.safe_load(path.read_text())
        recipe = {
            "title": study.title,
            "scale": self.config.scale_name,
            "description": self.config.scale.description,
            "figures": drawn,
            "published": published,
            "runs": {run: self.config.runs[run].model_dump(mode="json") for run in study.runs},
            "evaluation": self.config.scale.evaluation.model_dump(mode="json"),
        }
        runs = {
            role: steps for role, steps in self.results.items() if role.split("/")[1] in {*study.runs, "base", "data"}
        }
        self.drawings[study_name, "report"] = Drawing(study_name, "report", recipe, runs)

    # ------------------------------------------------------------ looking up

    def _frozen(self, digest: str) -> dict:
        """recipe.json of a step that is no longer in the config but still queued or lying in results/."""
        found = sorted(self.root.glob(f"results/*/*-{digest}/{RECIPE}"))
        if not found:
            raise UserError(f"no step has digest {digest}: neither the config nor results/ knows it.")
        return read_json(found[0])

    def inputs(self, digest: str) -> list[str]:
        """Manifests that must be finished before the step with this digest."""
        if digest in self.steps:
            directories = [step.directory for step in self.steps[digest].inputs.values()]
        else:
            directories = [item["directory"] for item in self._frozen(digest)["inputs"].values()]
        return [f"{directory}/{MANIFEST}" for directory in directories]

    def resources_of_stage(self, stage: str) -> StageResources:
        return self.config.scale.resources.get(stage, StageResources())

    def nodes_of_stage(self, stage: str) -> int:
        """Nodes of one job of the stage."""
        settings = self.config.scale.train_settings
        if stage != "train":
            return 1
        return settings.nodes + (settings.server.nodes if settings.server else 0)

    def targets(self, study: str) -> list[str]:
        return [
            f"results/figures/{study}/{name}.pdf"
            for owner, name in self.drawings
            if owner == study and name != "report"
        ] + [f"results/report/{study}/index.html"]

    def freeze(self) -> Path:
        """Write the config and the recipe of every step and drawing, so that a queued job outlives an edited config.

        Returns the frozen config's path (scalpel.config.thaw reads it).
        """
        text = freeze_config(self.config)
        frozen = self.root / f"results/configs/{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        if not frozen.exists():
            frozen.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(frozen, text + "\n")
        for step in self.steps.values():
            freeze(step, self.root)
        for drawing in self.drawings.values():
            path = self.root / drawing.recipe_path
            text = json.dumps(drawing.frozen(), indent=1, ensure_ascii=False) + "\n"
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, text)
        return frozen.resolve()


def file_digest(path: Path) -> str:
    """sha256 of a source file, remembered by (path, size, time, inode) so that a large file is read once.

    The memory lies in the user's cache directory: planning must not write into results/.
    """
    stat = path.stat()
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    key = hashlib.sha256(identity.encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalpel" / "sha256" / key
    try:
        remembered = cache.read_text()
        if len(remembered) == 64:
            return remembered
    except OSError:
        pass
    digest = sha256_file(path)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, digest)
    except OSError:  # a read-only home costs time, not correctness
        pass
    return digest
