"""Write the JSON schema of config.yaml, by which editors complete and check it: python -m scripts.schema [--check]

From the typed configuration alone (scalpel/config). It is looser than that: whatever may be laid over a scale or a run
may be left out or be null, and what depends on other fields is for scalpel.config.load to judge.
"""

import argparse
import json
import sys
from typing import Any

from pydantic.json_schema import models_json_schema

from scalpel.artifact.files import ROOT, write_atomically
from scalpel.config.scale import Scale, Setting
from scalpel.config.study import RunAxes, UserConfig
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.program import WORKFLOW, end_with

PATH = ROOT / "workflow" / "config.schema.json"


def schema() -> dict[str, Any]:
    """The schema as JSON values."""
    recipes = {name: method.Recipe for name, method in METHODS.items()}
    models = [UserConfig, Scale, Setting, RunAxes, *recipes.values()]
    names, whole = models_json_schema([(model, "validation") for model in models])
    found = {model: names[model, "validation"]["$ref"].rsplit("/", 1)[1] for model in models}
    parts = {name: partial(part) for name, part in whole["$defs"].items()}
    fields = {name: {"$ref": f"#/$defs/{found[recipe]}"} for name, recipe in recipes.items()}
    for owner in (Scale, Setting):
        parts[found[owner]]["properties"]["methods"] = {
            "type": "object", "additionalProperties": False, "properties": fields
        }  # fmt: skip
        parts[found[owner]]["properties"]["runs"] = by_name("Run")
    parts[found[Scale]]["properties"]["studies"] = by_name(found[Setting])
    parts["Run"] = run(parts, found, recipes)
    user = parts.pop(found[UserConfig])
    user["properties"] |= {
        "overrides": {"$ref": f"#/$defs/{found[Scale]}"},
        "runs": by_name("Run"),
        "scale": known("scales"),
        "as_published": {"anyOf": [known("as_published"), {"type": "null"}]},
        "studies": {"type": "array", "minItems": 1, "items": known("studies")},
    }
    user.pop("required", None)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "config.yaml of Scalpel"}
    return (
        head | {name: item for name, item in user.items() if name != "title"} | {"$defs": dict(sorted(parts.items()))}
    )


def run(parts: dict, found: dict, recipes: dict) -> dict[str, Any]:
    """One run: its axes, and the fields of every method's recipe."""
    fields: dict[str, list] = {}
    for recipe in recipes.values():
        for name, item in parts[found[recipe]]["properties"].items():
            if item not in fields.setdefault(name, []):
                fields[name].append(item)
    properties = {name: items[0] if len(items) == 1 else {"anyOf": items} for name, items in sorted(fields.items())}
    properties["method"] = {"enum": sorted(recipes)}
    properties |= parts[found[RunAxes]]["properties"]
    return {"type": "object", "additionalProperties": False, "properties": properties}


def by_name(part: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"anyOf": [{"$ref": f"#/$defs/{part}"}, {"type": "null"}]}}


def known(folder: str) -> dict[str, Any]:
    """A name of workflow/<folder>, or another."""
    return {"anyOf": [{"enum": sorted(path.stem for path in (WORKFLOW / folder).glob("*.yaml"))}, {"type": "string"}]}


def partial(part: Any) -> Any:
    """A schema of which any field may be left out and any entry of a mapping be null, and no alternative excludes
    another."""
    if isinstance(part, list):
        return [partial(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {name: partial(item) for name, item in part.items() if name not in ("required", "discriminator", "default")}
    if "default" in part and not isinstance(part["default"], dict | list):
        kept["default"] = part["default"]
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = {"anyOf": [kept["additionalProperties"], {"type": "null"}]}
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.schema", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 2 when it is not current")
    options = parser.parse_args()
    text = json.dumps(schema(), indent=1, sort_keys=True) + "\n"
    if PATH.is_file() and PATH.read_text() == text:
        print(f"{PATH.relative_to(ROOT)} is current", file=sys.stderr)
        return 0
    if options.check:
        raise UserError(f"{PATH.relative_to(ROOT)} is not what the typed configuration gives; run `make schema`.")
    write_atomically(PATH, text)
    print(f"{PATH.relative_to(ROOT)} written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    end_with(main)
