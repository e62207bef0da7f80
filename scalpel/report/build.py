"""Main of scripts/report.py: a study's page, from its recipe file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from scalpel import claims, exhibits
from scalpel.claims.evidence import measured, published
from scalpel.claims.judge import Evidence
from scalpel.config.study import Margins
from scalpel.config.types import BASE
from scalpel.errors import UserError
from scalpel.exhibits import drawing, embedded, record
from scalpel.exhibits.options import ExhibitOptions
from scalpel.exhibits.result import Result
from scalpel.exhibits.results import Results
from scalpel.exhibits.style import Style
from scalpel.report import (
    answer,
    audits,
    cite,
    completions,
    cost,
    course,
    drops,
    findings,
    origins,
    runs,
    setup,
    tables,
    verdicts,
)
from scalpel.report.made import made, made_of

HERE = Path(__file__).parent
GALLERY = "gallery.html"  # beside index.html
ROWS = 100  # of an exhibit's csv, in the gallery
FILES_OF_DATA = {"": "result", "drops.csv": "drops.csv", "kept.parquet": "kept.parquet"}  # linked, by its place


class Exhibit(NamedTuple):
    """One figure or table as the pages show it. image: a figure's data URI. finding: what it shows, in a sentence."""

    name: str
    heading: str
    caption: str
    recipe: dict
    entries: list[dict]  # of the results that it shows, other studies' among them
    files: list[tuple[str, str]]  # (suffix, path from the page)
    table: tables.Table  # of its csv
    image: str | None = None
    finding: str = ""

    @property
    def alt(self) -> str:
        """What stands for the picture: what it is of, and what it shows; else the whole caption."""
        first = f"{self.caption.partition('. ')[0].rstrip('.')}. {self.finding}" if self.finding else self.caption
        return f"{self.heading}: {first}"

    @property
    def rows(self) -> int:
        return len(self.table.rows)


def main() -> None:
    drawing.run(report)


def report(path: Path) -> None:
    """Write the page whose recipe file is `path`.

    Raises UserError naming the result or exhibit that is missing, damaged or not the one planned.
    """
    opened = drawing.opened(path)
    opened.check_code(exhibits.report_code())
    shown = {name: _exhibit(opened, name) for name in opened.recipe["exhibits"]}
    drawing.put(opened, {"index.html": page(opened, shown).encode(), GALLERY: gallery(opened, shown).encode()})


def gallery(opened: drawing.Opened, shown: dict[str, Exhibit]) -> str:
    """The HTML text of the page with all exhibits and their numbers: figures side by side, then tables."""
    figures_first = sorted(shown.values(), key=lambda exhibit: exhibit.image is None)
    return _filled("gallery.jinja", opened, exhibits=figures_first, most=ROWS)


def page(opened: drawing.Opened, shown: dict[str, Exhibit]) -> str:
    """The HTML text of the report."""
    recipe, folder = opened.recipe, opened.place(opened.files[0]).parent
    results = Results.of_entries(opened.entries, opened.results)
    label = Style(recipe["looks"], (), ExhibitOptions()).label
    recorded = {name: exhibit.recipe for name, exhibit in shown.items()}
    rivals = next((one["options"]["runs"] for one in recorded.values() if one["kind"] == "rivals"), ())
    evidence = measured(results, rivals)
    found = _decided(recipe, opened.name, evidence, label)
    equal, bugs = (shown.get(recipe["answer"][field]) for field in ("equal", "bugs"))
    said = answer.answer(
        recipe["answer"], recorded, evidence, list(recipe["runs"]), label,
        equal.table if equal else None, bugs.table if bugs else None,
    )  # fmt: skip
    evaluation = dict(recipe["evaluation"])
    foreign = Results.of_entries([entry for one in shown.values() for entry in one.entries], opened.results).found
    seeds = {label(run): described["seeds"] for run, described in recipe["runs"].items()}
    seeds |= _seeds_of_others(foreign)
    named = [*answer.compared(recipe["answer"], list(recipe["runs"]))]
    named += recorded[recipe["answer"]["equal"]]["options"]["runs"] if equal else []
    named = [label(run) for run in dict.fromkeys(named) if label(run) in seeds]
    return _filled(
        "report.jinja",
        opened,
        digest=opened.digest,
        commit=opened.provenance()["commit"],
        source=recipe["published"].get("source"),
        seeds=seeds,
        verdicts=found,
        counts=verdicts.counts(found),
        families=verdicts.families(found),
        has_published=any(one.there for one in found),
        answer=said,
        made=made([place for result in (*results.found, *foreign) for place in made_of(result)], folder),
        cost=cost.cost(results, label),
        works=cite.works(opened.provenance()["commit"]),
        several_seeds=[run for run in named if len(seeds[run]) > 1],
        one_seed=[run for run in named if len(seeds[run]) == 1],
        picture=shown.get(said.picture or ""),
        exhibits=list(shown.values()),
        completions=completions.side_by_side(results, answer.compared(recipe["answer"], list(recipe["runs"])), label),
        audits=audits.audits(results.of("train"), label, folder),
        course=course.course(results, label),
        runs=runs.runs(results, recipe["runs"], recipe["papers"], folder, label),
        papers=recipe["papers"],
        data=[
            (result.run, _links(result, folder), drops.drops(result.step))
            for result in results.of("data", "generate", "common")
        ],
        linked=lambda place, text: tables.link(place, folder, text),
        tasks=setup.compared(evaluation.pop("tasks"), "Benchmark"),
        training=setup.compared(recipe["runs"], "Training", label),
        sampling=[f"{field} {tables.text_of(value)}" for field, value in evaluation.items()],
    )


def _links(result: Result, page: Path) -> list[str]:
    """To the files of a result of rows, of those that are there."""
    return [
        tables.link(result.step / file, page, name)
        for file, name in FILES_OF_DATA.items()
        if (result.step / file).exists()
    ]


def _seeds_of_others(found: list[Result]) -> dict[str, list[int]]:
    """Of trained runs of other studies, <study>/<run>."""
    seeds: dict[str, list[int]] = {}
    for result in found:
        owner, _, run = result.run.rpartition("/")
        if owner and run != BASE and result.seed not in seeds.setdefault(result.run, []):
            seeds[result.run].append(result.seed)
    return seeds


def _filled(template: str, opened: drawing.Opened, **parts: Any) -> str:
    """A template with what all pages have and the parts given."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shared = {name: opened.recipe[name] for name in ("title", "scale")}
    shared |= {"origins": origins.origins(opened.recipe["origins"], opened.recipe["description"])}
    provenance = embedded.text_of(opened.provenance())
    css = Markup((HERE / "style.css").read_text())
    return environment.get_template(template).render(
        study=opened.study, provenance=provenance, css=css, **shared, **parts
    )


def _decided(recipe: dict, name: str, evidence: Evidence, label: Callable[[str], str]) -> list[verdicts.Verdict]:
    """The study's claims, here and on published numbers."""
    if not recipe["claims"]:
        return []
    module, numbers = claims.module(recipe["claims"], name), recipe["published"]
    theirs = published(numbers, module.PUBLISHED_AS)
    rates = numbers.get("learning_rates", {})
    rates |= {ours: rates[there] for ours, there in module.PUBLISHED_AS.items() if there in rates}
    return verdicts.verdicts(
        module.CLAIMS, evidence, theirs, Margins(**recipe["margins"]), verdicts.rates_of(recipe["runs"]),
        rates, label,
    )  # fmt: skip


def _exhibit(opened: drawing.Opened, name: str) -> Exhibit:
    """A figure or table, if its files show what was planned; UserError otherwise."""
    planned = opened.recipe["exhibits"][name]
    files = {Path(file).suffix: opened.place(file) for file in planned["files"]}
    file = files.get(".png", files[".csv"])
    beside = file.with_suffix(".json")
    found = record.read(beside)
    if not found or found["digest"] != planned["digest"]:
        raise UserError(f"{file} does not show what was planned; start snakemake again.")
    record.checked(beside, file)
    recorded = found["recipe"]
    options = recorded["options"]
    heading, caption = options["number"] or name, options["caption"]
    page = opened.place(opened.files[0]).parent
    links = [(suffix[1:], Path(os.path.relpath(place, page)).as_posix()) for suffix, place in files.items()]
    label = Style(recorded["looks"], (), ExhibitOptions(labels=options["labels"])).label
    numbers = tables.of_csv(record.checked(beside, files[".csv"]), label)
    picture = f"data:image/png;base64,{base64.b64encode(light(file)).decode()}" if file.suffix == ".png" else None
    said = findings.finding(recorded["kind"], files[".csv"], options, label) if picture else ""
    return Exhibit(name, heading, caption, recorded, found["entries"], links, numbers, picture, said)


def light(file: Path) -> bytes:
    """A picture with at most 256 colours, a third of the bytes: a page of thirty stays small, and links to the whole
    ones."""
    from PIL import Image

    with Image.open(file) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    kept = io.BytesIO()
    few.save(kept, "png", optimize=True)
    return min(kept.getvalue(), file.read_bytes(), key=len)
