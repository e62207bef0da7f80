"""What lies in results/ and cannot be trusted: damaged results and exhibits, and what was derived from them.

`find` hashes all that is finished. `move_aside` takes what it found out of the way, so that Snakemake makes exactly
that again: a result whose manifest is gone is missing, and so is an exhibit without its record.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import MANIFEST, RECIPE, is_temporary, read_json
from scalpel.artifact.lease import holders
from scalpel.artifact.manifest import content_hash, difference, problems
from scalpel.errors import UserError
from scalpel.exhibits import SUFFIXES, record
from scalpel.stages import REPORT, STAGES

ASIDE = "aside"  # folder of results/ that `move_aside` fills
SHOWN_IN = {**SUFFIXES, REPORT: ("html",)}  # folders of exhibits, and the suffixes of their files
LOOK_AGAIN_SECONDS = 2.0  # after which what looks damaged is hashed once more: somebody may be writing it
FIELDS = ("stage", "name", "version", "digest", "recipe", "inputs")  # that recipe.json and the manifest share


class Finding(NamedTuple):
    """A result (its directory) or an exhibit (its record, or a file that has none) that cannot be trusted.

    problems: what is wrong with its files; derived: what is wrong with what it was made of. One of them may be empty.
    """

    place: Path
    problems: list[str]
    derived: list[str]


def finished(results: Path) -> list[Path]:
    """Directories of finished results, and records of exhibits with the files that have none."""
    made = [path.parent for stage in STAGES for path in results.glob(f"{stage}/*/{MANIFEST}")]
    return sorted(made) + _shown(results)


def find(results: Path) -> list[Finding]:
    """All that is damaged, and then all that was derived from damage or from what lies there no more.

    A report of an exhibit that was drawn again since is out of date and no damage: Snakemake writes it again.
    """
    found: list[str] | list[Path]
    places = finished(results)
    damage = {place: found for place in places if (found := _problems(place))}
    if damage:
        time.sleep(LOOK_AGAIN_SECONDS)
        damage = {place: found for place in damage if place.exists() and (found := _problems(place))}
    made_of = {place: _made_of(place, results) for place in places if place.exists()}
    hashes = {place: _hash(place) for place in made_of}
    derived: dict[Path, list[str]] = {}

    def trusted(place: Path) -> bool:
        if place not in derived:
            derived[place] = []
            for name, (other, then) in made_of.get(place, {}).items():
                if not trusted(other):
                    why = "which is damaged" if other in damage else "which is derived from damage"
                    derived[place].append(f"{place}: made of {name}, {why}: {other}")
                elif other.suffix != ".json" and then and hashes.get(other) not in (None, then):
                    derived[place].append(f"{place}: made of {name} when it held something else: {other}")
        return place not in damage and not derived[place]

    found = [place for place in made_of if not trusted(place)]
    return [
        Finding(place, damage.get(place, []), derived[place]) for place in sorted(found, key=lambda p: p not in damage)
    ]


def move_aside(found: list[Finding], results: Path) -> Path:
    """Move what was found below a new folder of results/aside, and return that; UserError when somebody makes it."""
    for item in found:
        if item.place.is_dir() and (busy := holders(item.place)):
            raise UserError(f"{item.place} is being made by {busy[0]}; wait for it, or end it first.")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = next(path for n in range(1000) if not (path := results / ASIDE / f"{stamp}{f'-{n}' * bool(n)}").exists())
    for item in found:
        for path in _paths(item.place):
            place = target / path.relative_to(results)
            place.parent.mkdir(parents=True, exist_ok=True)
            _move(path, place)
    return target


# ---------------------------------------------------------------- parts


def _shown(results: Path) -> list[Path]:
    """Records of exhibits, and files of exhibits that no record names."""
    records = [path for folder in SHOWN_IN for path in sorted(results.glob(f"{folder}/*/*.json"))]
    named = {path.with_name(name) for path in records if (content := record.read(path)) for name in content["files"]}
    files = [
        path for folder, suffixes in SHOWN_IN.items() for path in sorted(results.glob(f"{folder}/*/*.*"))
        if path.suffix[1:] in suffixes and not is_temporary(path.name)
    ]  # fmt: skip
    damaged = {path.stem for path in records if not record.read(path)}
    loose = [path for path in files if path not in named and path.stem not in damaged]
    return [path for path in records if not is_temporary(path.name)] + loose


def _problems(place: Path) -> list[str]:
    """What is wrong with the files of a result or exhibit."""
    try:
        if place.is_dir():
            return problems(place) + _recipe_differs(place)
        if place.suffix != ".json":
            named = record.read(place.with_suffix(".json")) or {"files": {}}
            return [] if place.name in named["files"] else [f"{place}: no record beside it says what it shows"]
        content = record.read(place)
        if content is None:
            return [f"{place}: damaged"]
        return [text for name, item in content["files"].items() if (text := difference(place.with_name(name), item))]
    except UserError as error:
        return [str(error)]
    except OSError as error:
        return [f"{place}: unreadable ({error.strerror})"]


def _recipe_differs(directory: Path) -> list[str]:
    manifest, recorded = read_json(directory / MANIFEST), read_json(directory / RECIPE)
    altered = [field for field in FIELDS if manifest.get(field) != recorded.get(field)]
    return [f"{directory / RECIPE}: {', '.join(altered)} differ from the manifest's"] if altered else []


def _made_of(place: Path, results: Path) -> dict[str, tuple[Path, str | None]]:
    """What a result or exhibit was made of: name -> (place, content hash that it had then, if recorded)."""
    try:
        if not place.is_dir():
            then = read_json(place)["made_of"] if place.suffix == ".json" else {}
            return {name: (_below(results, name), then[name]) for name in then}
        content = _description(place)
        then = content.get("made_of") or {}
        return {role: (_below(results, item["directory"]), then.get(role)) for role, item in content["inputs"].items()}
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return {}


def _description(directory: Path) -> dict:
    """The manifest of a result; its recipe.json where that is damaged."""
    try:
        return read_json(directory / MANIFEST)
    except UserError:
        return read_json(directory / RECIPE)


def _below(results: Path, recorded: str) -> Path:
    return results.joinpath(*Path(recorded).parts[1:])


def _hash(place: Path) -> str | None:
    try:
        return content_hash(read_json(place / MANIFEST if place.is_dir() else place))
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None


def _paths(place: Path) -> list[Path]:
    """What is moved: a result's directory; an exhibit's record and then its files."""
    if place.is_dir() or place.suffix != ".json":
        return [place]
    content = record.read(place)
    names = content["files"] if content else [f"{place.stem}.{suffix}" for suffix in SHOWN_IN[place.parts[-3]]]
    return [place, *(path for name in names if (path := place.with_name(name)).exists())]


def _move(path: Path, target: Path) -> None:
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(path, target)
