"""docs/understand.md: it has every number that is shown, and names files and sources that are there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from scalpel import exhibits
from scalpel.claims.evidence import LOGGED, STRUCTURE
from scalpel.claims.judge import VERDICTS, Evidence
from scalpel.config.study import Margins
from scalpel.exhibits import axis, flops, spent, structure

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "understand.md").read_text()
NAMED = set(re.findall(r"`(\w+)`", PAGE))


@pytest.mark.parametrize(
    "names",
    [
        exhibits.kinds(), STRUCTURE, structure.MEASURES, LOGGED, axis.LABELS, spent.KINDS, Margins.model_fields,
        [field.name for field in fields(Evidence)],
    ],
    ids=["exhibits", "structure", "panels", "log", "axes", "flops", "margins", "evidence"],
)  # fmt: skip
def test_every_number_has_an_entry(names):
    assert not set(names) - NAMED


def test_every_verdict_and_accounting_is_a_row():
    rows = set(re.findall(r"(?m)^\| ([\w ]+) \|", PAGE))
    assert rows >= {*VERDICTS, *flops.ACCOUNTINGS}


def test_margins_are_those_of_the_code():
    units = {"points": 0.01, "factor": 1}
    for name, default in re.findall(r"(?m)^\| `(\w+)` \|[^|]*\| ([^|]+) \|$", PAGE):
        number = next(float(word) for word in default.split() if re.fullmatch(r"[\d.]+", word))
        scale = next((units[word] for word in default.split() if word in units), 1)
        assert number * scale == pytest.approx(getattr(Margins(), name)), name


def test_files_and_functions_and_sources_are_there():
    """Sources are those that the code names itself."""
    files = set(re.findall(r"`(scalpel/[\w/]+\.py)`", PAGE))
    assert len(files) > 20 and all((ROOT / file).is_file() for file in files)
    for file, name in re.findall(r"`(scalpel/[\w/]+\.py)` \(`(\w+)`\)", PAGE):
        assert f"def {name}(" in (ROOT / file).read_text(), name
    text = "".join(path.read_text() for path in (ROOT / "scalpel").rglob("*.py"))
    papers = set(re.findall(r"arXiv (\d{4}\.\d{5})", PAGE))
    assert papers and all(number in text for number in papers)


def test_the_readme_and_the_report_lead_to_it():
    assert "](docs/understand.md)" in (ROOT / "README.md").read_text()
    assert "docs/understand.md" in (ROOT / "scalpel" / "report" / "templates" / "report.jinja").read_text()
