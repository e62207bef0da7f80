"""The section on citing: the software and the papers it remakes, from CITATION.cff, as text and as BibTeX.

https://citation-file-format.github.io
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import ROOT
from scalpel.config.load import read_yaml

FILE = "CITATION.cff"


class Work(NamedTuple):
    """One work to cite. text: authors, title, where and when; bibtex: an entry."""

    text: str
    bibtex: str


def works(commit: str | None, path: Path = ROOT / FILE) -> list[Work]:
    """The software first, at the commit that wrote the page, then its references; none where the file is not there."""
    if not path.is_file():
        return []
    found = read_yaml(path)
    return [_work(found, commit), *(_work(other) for other in found.get("references", []))]


def _work(of: dict, commit: str | None = None) -> Work:
    names = [_name(author) for author in of["authors"]]
    year, software = of.get("year"), of.get("type") == "software"
    where = [f"Version {of['version']}" if "version" in of else "", f"commit {commit}" if commit else ""]
    where += [of.get("journal", ""), of.get("url", ""), str(year or "")]
    text = f"{_listed(names)}. {of['title'].rstrip('.')}{'' if of['title'][-1] in '?!' else '.'}"
    where = [part for part in where if part]
    fields = {
        "author": " and ".join(f"{{{name}}}" if "name" in author else _sorted(author)
                               for name, author in zip(names, of["authors"], strict=True)),
        "title": f"{{{of['title']}}}", "journal": of.get("journal"), "version": of.get("version"), "year": year,
        "url": of.get("url"), "note": f"commit {commit}" if commit else None,
    }  # fmt: skip
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    key = "scalpel" if software else _key(of)
    return Work(f"{text} {', '.join(where)}.", f"@{'software' if software else 'article'}{{{key},\n{lines}\n}}")


def _name(author: dict) -> str:
    return author.get("name") or " ".join(filter(None, [author.get("given-names"), author.get("family-names")]))


def _sorted(author: dict) -> str:
    """As BibTeX has names."""
    return ", ".join(filter(None, [author.get("family-names"), author.get("given-names")]))


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _key(of: dict) -> str:
    """First author, year and first long word of the title."""
    first = of["authors"][0]
    word = next(iter(re.findall(r"[A-Za-z]{3,}", of["title"])), "")
    return f"{first.get('family-names', '')}{of.get('year', '')}{word}".lower()
