"""What a figure, table or report shows, embedded in each of its files, and read back from it.

Where: a PDF's Keywords, a PNG's text chunk Provenance, an SVG's description, a csv file's first line, a page's
<meta name="provenance">.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from scalpel.errors import UserError

DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
SOFTWARE = "Scalpel"


def text_of(provenance: dict) -> str:
    """One line of ASCII, the same for the same content."""
    return json.dumps(provenance, sort_keys=True)


def metadata(suffix: str, title: str, provenance: dict) -> dict:
    """What matplotlib's savefig is told so that a file of this suffix holds the provenance, and no date."""
    text = text_of(provenance)
    about: dict[str, dict] = {
        "pdf": {"Title": title, "Creator": SOFTWARE, "Keywords": text, "CreationDate": None},
        "png": {"Title": title, "Software": SOFTWARE, "Provenance": text},
        "svg": {"Title": title, "Creator": SOFTWARE, "Description": text, "Date": None},
    }
    return about[suffix]


def current(path: Path) -> dict:
    """The provenance in a file that scalpel.exhibits or scalpel.report wrote: digest, study, name, commit, entries.

    Raises UserError naming the file when it is missing, damaged or somebody else's.
    """
    try:
        text = READERS[path.suffix](path)
        found = json.loads(text)
        if not isinstance(found, dict) or "digest" not in found:
            raise ValueError("no digest")
        return found
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run snakemake again.") from None
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        raise UserError(
            f"{path} is damaged, as it does not say what it shows; delete it and run snakemake again."
        ) from None


def _of_csv(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        return file.readline().removeprefix("# ")


def _of_png(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        return image.info["Provenance"]


def _of_pdf(path: Path) -> str:
    """A literal string, whose parentheses and backslashes are escaped."""
    found = re.search(rb"/Keywords \(((?:[^()\\]|\\.)*)\)", path.read_bytes())
    return re.sub(rb"\\(.)", rb"\1", found[1]).decode() if found else ""


def _of_svg(path: Path) -> str:
    with open(path, "rb") as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag == DESCRIPTION:
                return element.text or ""
    return ""


def _of_html(path: Path) -> str:
    class Meta(HTMLParser):
        content = ""

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            fields = dict(attributes)
            if tag == "meta" and fields.get("name") == "provenance":
                self.content = fields.get("content") or ""

    parser = Meta()
    with open(path, encoding="utf-8") as file:
        parser.feed(file.read(1 << 20))  # the head; images may make the page large
    return parser.content


READERS = {".csv": _of_csv, ".png": _of_png, ".pdf": _of_pdf, ".svg": _of_svg, ".html": _of_html}
