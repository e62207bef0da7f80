"""Main of scripts/report.py: a study's page, from its recipe file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from scalpel import claims, exhibits
from scalpel.claims.evidence import measured, published
from scalpel.claims.judge import Evidence
from scalpel.config.study import Margins
from scalpel.errors import UserError
from scalpel.exhibits import drawing, embedded, record
from scalpel.exhibits.options import ExhibitOptions
from scalpel.exhibits.results import Results
from scalpel.exhibits.style import Style
from scalpel.report import answer, audits, completions, course, drops, setup, tables, verdicts
from scalpel.report.made import made

HERE = Path(__file__).parent


class Exhibit(NamedTuple):
    """One figure or table as the page shows it. image: a data URI; one of image and table is there."""

    name: str
    heading: str
    caption: str
    recipe: dict
    files: list[tuple[str, str]]  # (suffix, path from the page)
    image: str | None = None
    table: tables.Table | None = None


def main() -> None:
    drawing.run(report)


def report(path: Path) -> None:
    """Write the page whose recipe file is `path`.

    Raises UserError naming the result or exhibit that is missing, damaged or not the one planned.
    """
    opened = drawing.opened(path)
    opened.check_code(exhibits.report_code())
    drawing.put(opened, {"html": page(opened).encode()})


def page(opened: drawing.Opened) -> str:
    """The HTML text."""
    recipe = opened.recipe
    results = Results.of_entries(opened.entries, opened.results)
    label = Style(recipe["looks"], (), ExhibitOptions()).label
    shown = {name: _exhibit(opened, name) for name in recipe["exhibits"]}
    recorded = {name: exhibit.recipe for name, exhibit in shown.items()}
    rivals = next((one["options"]["runs"] for one in recorded.values() if one["kind"] == "rivals"), ())
    evidence = measured(results, rivals)
    found = _decided(recipe, opened.name, evidence, label)
    said = answer.answer(recipe["answer"], recorded, evidence, list(recipe["runs"]), label)
    evaluation = dict(recipe["evaluation"])
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    provenance = opened.provenance()
    return environment.get_template("report.jinja").render(
        css=Markup((HERE / "style.css").read_text()),
        study=opened.study,
        digest=opened.digest,
        commit=provenance["commit"],
        provenance=embedded.text_of(provenance),
        title=recipe["title"],
        scale=recipe["scale"],
        description=recipe["description"],
        source=recipe["published"].get("source"),
        seeds={label(run): described["seeds"] for run, described in recipe["runs"].items()},
        verdicts=found,
        counts=verdicts.counts(found),
        families=verdicts.families(found),
        has_published=any(one.there for one in found),
        answer=said,
        made=made([place for result in results.found for place in (result.step, *result.chain)]),
        one_seed=all(len(described["seeds"]) == 1 for described in recipe["runs"].values()),
        picture=shown.get(said.picture),
        exhibits=list(shown.values()),
        completions=completions.side_by_side(results, answer.compared(recipe["answer"], list(recipe["runs"])), label),
        audits=audits.audits(results.of("train"), label),
        course=course.course(results, label),
        data=[(result.run, drops.drops(result.step)) for result in results.of("data", "generate", "common")],
        tasks=setup.compared(evaluation.pop("tasks"), "Benchmark"),
        training=setup.compared(recipe["runs"], "Training", label),
        sampling=[f"{field} {tables.text_of(value)}" for field, value in evaluation.items()],
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
    if file.suffix == ".png":
        image = f"data:image/png;base64,{base64.b64encode(light(file)).decode()}"
        return Exhibit(name, heading, caption, recorded, links, image=image)
    label = Style(recorded["looks"], (), ExhibitOptions(labels=options["labels"])).label
    return Exhibit(name, heading, caption, recorded, links, table=tables.of_csv(file, label))


def light(file: Path) -> bytes:
    """A picture with at most 256 colours, a third of the bytes: a page of thirty stays small, and links to the whole
    ones."""
    from PIL import Image

    with Image.open(file) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    kept = io.BytesIO()
    few.save(kept, "png", optimize=True)
    return min(kept.getvalue(), file.read_bytes(), key=len)
