"""Write the JSON schema of config.yaml, by which editors complete and check it: python -m scripts.schema [--check]

From the typed configuration alone (scalpel/config), its docstrings and the comments beside its fields. It is looser
than that: whatever is laid over a scale or a run may be left out, a mapping there may be null, which removes it, and
what depends on other fields is for scalpel.config.load to judge.
"""

import argparse
import ast
import inspect
import io
import json
import re
import sys
import textwrap
import tokenize
from collections.abc import Collection
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from scalpel.artifact.files import ROOT, write_atomically
from scalpel.config.scale import Scale, Setting
from scalpel.config.study import RunAxes, UserConfig
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.program import WORKFLOW, end_with

NULL = {"type": "null"}
PATH = ROOT / "workflow" / "config.schema.json"


def schema() -> dict[str, Any]:
    """The schema as JSON values."""
    recipes = {name: method.Recipe for name, method in METHODS.items()}
    models = [UserConfig, Scale, Setting, RunAxes, *recipes.values()]
    names, whole = models_json_schema([(model, "validation") for model in models])
    found = {model: names[model, "validation"]["$ref"].rsplit("/", 1)[1] for model in models}
    described(whole["$defs"], classes(*models))
    parts = {name: partial(part) for name, part in whole["$defs"].items()}
    for name, part in parts.items():
        removable(part, parts, whole["$defs"][name].get("required", ()))
    fields = {name: {"$ref": f"#/$defs/{found[recipe]}"} for name, recipe in recipes.items()}
    for owner in (Scale, Setting):
        laid = parts[found[owner]]["properties"]
        each = {name: {"anyOf": [item, NULL]} for name, item in fields.items()}
        laid["methods"] |= {"anyOf": [{"type": "object", "additionalProperties": False, "properties": each}, NULL]}
        laid["runs"] |= {"anyOf": [by_name("Run"), NULL]}
    parts[found[Scale]]["properties"]["studies"] |= {"anyOf": [by_name(found[Setting]), NULL]}
    parts["Run"] = run(parts, found, recipes)
    user = parts.pop(found[UserConfig])
    more = {
        "overrides": {"$ref": f"#/$defs/{found[Scale]}"},
        "runs": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Run"}},
        "scale": known("scales"),
        "as_published": {"anyOf": [known("as_published"), NULL]},
        "studies": {"type": "array", "minItems": 1, "items": known("studies")},
    }
    for name, item in more.items():
        told = user["properties"][name].get("description")
        user["properties"][name] = item | ({"description": told} if told else {})
    user.pop("required", None)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "config.yaml of Scalpel"}
    return (
        head | {name: item for name, item in user.items() if name != "title"} | {"$defs": dict(sorted(parts.items()))}
    )


def run(parts: dict, found: dict, recipes: dict) -> dict[str, Any]:
    """One run: its axes, and the fields of every method's recipe."""
    fields: dict[str, list] = {}
    told: dict[str, set] = {}
    for recipe in recipes.values():
        for name, item in parts[found[recipe]]["properties"].items():
            told.setdefault(name, set()).add(item.get("description"))
            bare = {key: value for key, value in item.items() if key != "description"}
            if bare not in fields.setdefault(name, []):
                fields[name].append(bare)
    properties = {name: items[0] if len(items) == 1 else {"anyOf": items} for name, items in sorted(fields.items())}
    for name, texts in told.items():
        if len(texts) == 1 and None not in texts:
            properties[name] = properties[name] | {"description": texts.pop()}
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
        kept["additionalProperties"] = {"anyOf": [kept["additionalProperties"], NULL]}
    if isinstance(kept.get("patternProperties"), dict):  # mappings by names
        kept["patternProperties"] = {key: {"anyOf": [item, NULL]} for key, item in kept["patternProperties"].items()}
    return kept


def removable(part: dict, parts: dict, required: Collection[str]) -> None:
    """Let every field of an object that is a mapping be null: laid over a scale, that takes the mapping away.

    required: fields without which the object is none.
    """
    for name, item in part.get("properties", {}).items():
        if name not in required and is_mapping(item, parts) and not is_null(item):
            bare = {key: value for key, value in item.items() if key not in ("description", "title")}
            rest = {key: value for key, value in item.items() if key in ("description", "title")}
            part["properties"][name] = rest | {
                "anyOf": [*bare["anyOf"], NULL] if set(bare) == {"anyOf"} else [bare, NULL]
            }


def is_mapping(item: dict, parts: dict) -> bool:
    if "$ref" in item:
        return is_mapping(parts[item["$ref"].rsplit("/", 1)[1]], parts)
    return item.get("type") == "object" or any(is_mapping(each, parts) for each in item.get("anyOf", ()))


def is_null(item: dict) -> bool:
    return item.get("type") == "null" or any(is_null(each) for each in item.get("anyOf", ()))


# ---------------------------------------------------------------- what fields are for


def classes(*models: Any) -> dict[str, type[BaseModel]]:
    """The classes that these are made of, by name; two of one name are left out."""
    found: set[type[BaseModel]] = set()

    def visit(part: Any) -> None:
        if isinstance(part, type) and issubclass(part, BaseModel) and part not in found:
            found.add(part)
            for field in part.model_fields.values():
                visit(field.annotation)
        for inside in part if isinstance(part, tuple) else get_args(part):
            visit(inside)

    visit(tuple(models))
    names = [model.__name__ for model in found]
    return {model.__name__: model for model in found if names.count(model.__name__) == 1}


def described(parts: dict, models: dict[str, type[BaseModel]]) -> None:
    """Give each field what is said of it in the class that declares it."""
    for name, model in models.items():
        fields = parts.get(name, {}).get("properties", {})
        for field, item in fields.items():
            owner = next((base for base in model.__mro__ if field in inspect.get_annotations(base)), None)
            text = comments(owner).get(field) if owner else None
            if text:
                item["description"] = text


def comments(model: type) -> dict[str, str]:
    """Field -> the comment in its lines, or in those right above it."""
    source = textwrap.dedent(inspect.getsource(model))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    said = {line: text for line, text in said.items() if not re.match(r"(type|noqa|fmt)\b", text)}
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 1
            while above in said and lines[above - 1].lstrip().startswith("#"):
                above -= 1
            told = [said[line] for line in range(above + 1, (node.end_lineno or node.lineno) + 1) if line in said]
            if told:
                found[node.target.id] = " ".join(told)
    return found


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
