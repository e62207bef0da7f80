"""Config -> every result with its recipe, digest, directory, inputs and gates. The Snakefile looks things up here.

Nothing here imports torch or writes, `Plan.record` aside, which the Snakefile calls when a run starts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from scalpel import claims, exhibits, published
from scalpel.artifact.disk import disk_errors
from scalpel.artifact.files import MANIFEST, RECIPE, RESULTS, read_json, sweep, write_atomically
from scalpel.artifact.lease import clear_remains
from scalpel.artifact.step import Step, record_recipe
from scalpel.config.load import nearest, record_config
from scalpel.config.scale import StageResources
from scalpel.config.study import Config
from scalpel.errors import UserError
from scalpel.exhibits import record
from scalpel.plan.materials import Materials
from scalpel.plan.model import Drawing, Entry, Run
from scalpel.plan.origin import of_study
from scalpel.plan.runs import Runs
from scalpel.plan.steps import Steps
from scalpel.stages import REPORT, STAGES


class Plan:
    """All results of one config. `steps` holds them by digest, `entries` by study, `drawings` by (study, name)."""

    def __init__(self, config: Config, workflow: Path, root: Path = Path(".")):
        self.config, self.workflow, self.root = config, workflow, root
        self.registry = Steps(config.scale, root)
        self.materials = Materials(config.scale, self.registry)
        self.runs = Runs(config, self.registry, self.materials, root)
        self.entries: dict[str, list[Entry]] = {study: list(self.runs.results(study)) for study in config.studies}
        self.drawings: dict[tuple[str, str], Drawing] = {}
        self._numbers: dict[Path, dict] = {}
        for study in config.studies:
            self._show(study)

    @property
    def steps(self) -> dict[str, Step]:
        """Every step by digest."""
        return self.registry.by_digest

    def run(self, study: str, name: str, seed: int) -> Run:
        """One run of a study with one seed."""
        return self.runs.run(study, name, seed)

    # ------------------------------------------------------------ what is shown

    def _show(self, study: str) -> None:
        config = self.config.studies[study]
        looks = {run: look.model_dump(mode="json") for run, look in config.looks.items()}
        for name, raw in config.exhibits.items():
            where = f"{study}.yaml: exhibits.{name}"
            if name == REPORT:
                raise UserError(f"{where}: the study's page is called so; give the exhibit another name.")
            kind = raw.get("kind", name)
            if not isinstance(kind, str):
                raise UserError(f"{where}: kind: {kind!r} is no name of an exhibit; give a kind or the path of a file.")
            kind = exhibits.find(kind, self.root, where)
            options = kind.options({key: value for key, value in raw.items() if key != "kind"}, where)
            entries = self._chosen(study, kind.reads, options.runs, where)
            shown: Any = list(dict.fromkeys(entry.run for entry in entries))
            for run in options.labels:
                if run not in shown:
                    raise UserError(f"{where}: labels: {run!r} is none of the runs shown{nearest(run, shown)}.")
            numbers = kind.of_published(self._published(study))
            recipe: dict[str, Any] = {
                "kind": kind.name,
                "code": kind.code,
                "options": options.model_dump(mode="json"),
                "looks": looks | self._looks_of_others(shown),
            }
            recipe |= {"published": numbers} if numbers else {}
            files = tuple(f"results/{kind.folder}/{study}/{name}.{suffix}" for suffix in kind.suffixes)
            self.drawings[study, name] = Drawing(study, name, recipe, entries, files)
        if config.claims:
            claims.find(config.claims, f"{study}.yaml: claims")
        drawings = {name: drawing for (owner, name), drawing in self.drawings.items() if owner == study}
        recipe = {
            "title": config.title,
            "scale": self.config.scale_name,
            "description": self.config.scale.description,
            "origins": of_study(self.entries[study]),
            "exhibits": {name: {"digest": d.digest, "files": d.files} for name, d in drawings.items()},
            "published": self._published(study),
            "claims": config.claims,
            "answer": config.answer.model_dump(mode="json"),
            "margins": config.margins.model_dump(mode="json"),
            "looks": looks,
            "runs": {run: spec.described() for run, spec in config.runs.items()},
            "papers": config.papers,
            "evaluation": config.setting.evaluation.model_dump(mode="json"),
            "code": exhibits.report_code(),
        }
        pages = tuple(f"results/report/{study}/{page}.html" for page in ("index", "gallery"))
        shown = tuple(drawings.values())
        self.drawings[study, REPORT] = Drawing(study, REPORT, recipe, tuple(self.entries[study]), pages, shown)

    def _looks_of_others(self, runs: Iterable[str]) -> dict[str, dict]:
        """Colours and markers of other studies' runs, <study>/<run>, as these studies give them, the first of each
        colour. Two studies may call different runs alike, so labels are not taken."""
        found: dict[str, dict] = {}
        for run in runs:
            owner, _, name = run.rpartition("/")
            look = self.config.studies[owner].looks.get(name) if owner else None
            if look and look.color not in {other["color"] for other in found.values()}:
                found[run] = look.model_dump(mode="json") | {"label": None}
        return found

    def _chosen(self, study: str, reads: tuple[str, ...], runs: tuple[str, ...], where: str) -> tuple[Entry, ...]:
        """Entries of the stages an exhibit reads, of the runs it names or, when it names none, of all."""
        if not runs:
            found = [entry for entry in self.entries[study] if entry.stage in reads]
        else:
            found = []
            for reference in runs:
                owner, _, name = reference.rpartition("/")
                owner = owner or study
                if owner not in self.entries:
                    raise UserError(
                        f"{where}: runs: study {owner!r} is not in use; add it to `studies` of config.yaml."
                    )
                known = {entry.run for entry in self.entries[owner]}
                if name not in known:
                    raise UserError(f"{where}: runs: {reference!r} is no run of study {owner}{nearest(name, known)}.")
                mine = [e for e in self.entries[owner] if e.run == name and e.stage in reads]
                found += [entry._replace(run=reference) for entry in mine]
        if not found:
            raise UserError(f"{where}: none of its runs has results of stage {' or '.join(reads)}.")
        return tuple(found)

    def _published(self, study: str) -> dict:
        name = self.config.studies[study].published
        if not name:
            return {}
        path = self.workflow / "published" / name
        path = path if path.is_file() else self.root / name
        if not path.is_file():
            raise UserError(
                f"{study}.yaml: published: {path} does not exist; name a file of workflow/published or its path."
            )
        if path not in self._numbers:
            self._numbers[path] = published.read(path)
        return self._numbers[path]

    # ------------------------------------------------------------ looking up

    def _recorded(self, digest: str) -> dict:
        """recipe.json of a step that is no longer in the config but still queued or lying in results/."""
        found = sorted(self.root.glob(f"results/*/*-{digest}/{RECIPE}"))
        if not found:
            raise UserError(f"no step has digest {digest}: neither the config nor results/ knows it.")
        return read_json(found[0])

    def inputs(self, digest: str) -> list[str]:
        """Manifests that must be finished before the step with this digest: its inputs' and its gates'."""
        if digest in self.steps:
            step = self.steps[digest]
            return [other.manifest for other in (step.inputs | step.gates).values()]
        recorded = self._recorded(digest)
        found = recorded["inputs"] | recorded.get("gates", {})
        return [f"{item['directory']}/{MANIFEST}" for item in found.values()]

    def resources_of_stage(self, stage: str) -> StageResources:
        """What is reserved for one job of the stage."""
        return self.registry.resources(stage)

    def nodes_of_stage(self, stage: str) -> int:
        """Nodes of one job of the stage."""
        settings = self.config.scale.train_settings
        if stage not in ("train", "audit"):
            return 1
        return settings.nodes + (settings.server.nodes if settings.server and stage == "train" else 0)

    def targets(self, study: str) -> list[str]:
        """All files that show something of a study."""
        return [file for (owner, _), drawing in self.drawings.items() if owner == study for file in drawing.outputs]

    def is_current(self, drawing: Drawing) -> bool:
        """Whether what is shown is this drawing, of the results that lie there; read from the exhibit itself."""
        return record.is_current(drawing, self.root) and all(self.is_current(other) for other in drawing.exhibits)

    def names(self, folder: str) -> list[str]:
        """Names of the exhibits of all studies whose files lie in results/<folder>; a stand-in if there are none."""
        return sorted({name for (_, name), d in self.drawings.items() if d.folder == folder}) or ["none"]

    def refuse_unknown(self, targets: Iterable[str], bounds: Iterable[str] = (), allowed: Iterable[str] = ()) -> None:
        """UserError for a word of a command line that nothing here makes: with the nearest name, or, where it is a
        run's or an exhibit's, with a file that stands for it. bounds: words that may be rules, too; allowed: rules.
        """
        made = [step.manifest for step in self.steps.values()]
        made += [file for drawing in self.drawings.values() for file in drawing.outputs]
        rules = (*STAGES, "figure", "table", REPORT)
        for word in targets:
            if word in rules:
                some = [file for file in made if file.split("/")[1] in (word, f"{word}s")]
                raise UserError(
                    f"{word} is a rule of many results; name one of its files, such as {(some or made)[0]}."
                )
            if word != "all" and not self._is_made(word, made):
                raise UserError(f"{word} is no result of this plan{self._meant(word, made)}.")
        for word in bounds:
            if word not in (*rules, "all") and not self._is_made(word, made):
                near = "/" in word or not difflib.get_close_matches(word, rules, n=1, cutoff=0.5)
                meant = self._meant(word, made, nearest(word, rules)) if near else nearest(word, rules)
                raise UserError(f"{word} is no rule and no result of this plan{meant}.")
        for word in allowed:
            if word not in (*rules, "all"):
                raise UserError(f"--allowed-rules: {word} is no rule{nearest(word, (*rules, 'all'))}.")

    def _place(self, word: str) -> str:
        """A file of a command line, relative to the root."""
        return os.path.normpath(os.path.relpath(word, self.root.resolve()) if os.path.isabs(word) else word)

    def _is_made(self, word: str, made: list[str]) -> bool:
        """Whether a file is of this plan, or of a recipe that lies in results/."""
        place = self._place(word)
        return place in made or (place.endswith(MANIFEST) and (self.root / place).with_name(RECIPE).is_file())

    def _meant(self, word: str, made: list[str], unknown: str = "; `make status` lists what there is") -> str:
        """What a mistyped target may have meant: a file, or that of a run or exhibit of such a name; else `unknown`."""
        short: dict[str, str] = {}
        for runs in self.runs.made.values():
            short.setdefault(runs.name, runs.checkpoints.manifest)
        for drawing in self.drawings.values():
            short.setdefault(drawing.name, drawing.files[0])
        short |= {Path(file).name: file for file in made if not file.endswith(MANIFEST)}
        place = self._place(word)
        parts = place.split("/")
        found: list[str] = []
        if parts[0] == RESULTS and len(parts) > 2:
            there = [file for file in made if file.split("/")[1] == parts[1]] or made
            found = self._named(parts[2], there) or difflib.get_close_matches(place, there, n=1)
        if not found:
            found = [short[name] for name in difflib.get_close_matches(parts[-1], short, n=1)]
        return f"; did you mean {found[0]!r}?" if found else unknown

    @staticmethod
    def _named(word: str, there: list[str]) -> list[str]:
        """The one of these files whose result's name, without its digest, is nearest to the word's."""
        names = {Path(file).parent.name.rpartition("-")[0]: file for file in reversed(there) if file.endswith(MANIFEST)}
        bare = re.sub(r"-[0-9a-f]{0,12}$", "", word)
        return [names[name] for name in difflib.get_close_matches(bare, names, n=1)]

    def missing(self) -> list[Step]:
        """Steps without a manifest."""
        return [step for step in self.steps.values() if not step.finished(self.root)]

    def wanted(self, words: Collection[str] = ()) -> set[str]:
        """Digests of the missing steps that Snakemake makes by itself: for exhibits that are not current.

        words: of its command line; where some are files of the plan, for these alone.
        """
        words = [word.removeprefix("./") for word in words]
        steps = [step for step in self.steps.values() if step.manifest in words]
        drawings = [drawing for drawing in self.drawings.values() if {*drawing.outputs} & {*words}]
        if not steps and not drawings:
            drawings = list(self.drawings.values())
        found: set[str] = set()
        needed = steps + [step for drawing in drawings if not self.is_current(drawing) for step in drawing.steps]
        while needed:
            step = needed.pop()
            if step.digest not in found and not step.finished(self.root):
                found.add(step.digest)
                needed += [*step.inputs.values(), *step.gates.values()]
        return found

    def record(self) -> Path:
        """Write the config and the recipe of every step and drawing, so that a queued job outlives an edited config.

        What killed processes left of their own is removed. Returns the recorded config's path
        (scalpel.config.load.recorded_config reads it); UserError when results/ cannot be written.
        """
        results = self.root / RESULTS
        config = record_config(self.config)
        recorded = results / f"configs/{hashlib.sha256(config.encode()).hexdigest()[:12]}.json"
        with disk_errors(results):
            if not recorded.exists():
                recorded.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(recorded, config + "\n")
            for step in self.steps.values():
                record_recipe(step, self.root)
                clear_remains(self.root / step.directory)
            for drawing in self.drawings.values():
                path = self.root / drawing.recipe_path
                text = json.dumps(drawing.record(), indent=1, ensure_ascii=False) + "\n"
                if not path.exists() or path.read_text() != text:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, text)
                for folder in (path.parent, (self.root / drawing.record_path).parent):
                    sweep(folder)
            sweep(recorded.parent)
        return Path(os.path.abspath(recorded))
