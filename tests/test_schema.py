"""The JSON schema of config.yaml: current, and it takes what the loader takes."""

import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from scalpel.config.load import load, read_yaml
from scalpel.errors import UserError
from scripts.schema import PATH, schema

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page.name, text) for page in PAGES for text in re.findall(r"(?s)```yaml\n(.*?)```", page.read_text())]
CONFIGS = [(name, text) for name, text in BLOCKS if not text.startswith("title:")]  # the others are studies' files
CONFIGS += [(name, (ROOT / name).read_text()) for name in ("config.yaml", "tests/smoke.yaml", "tests/real.yaml")]


@pytest.fixture(scope="module")
def checker():
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_the_committed_schema_is_current_and_config_yaml_names_it():
    """In a process of its own: other tests declare methods of theirs."""
    check = [sys.executable, "-m", "scripts.schema", "--check"]
    assert subprocess.run(check, cwd=ROOT).returncode == 0
    first = (ROOT / "config.yaml").read_text().splitlines()[0]
    assert (ROOT / first.removeprefix("# yaml-language-server: $schema=")) == PATH


@pytest.mark.parametrize(("where", "text"), CONFIGS, ids=lambda value: " ".join(value.split())[:40])
def test_what_the_loader_takes_fits(where, text, checker):
    checker.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "scal: laptop",
        "tracking: wandbb",
        "overrides: {dataste: mine}",
        "overrides: {methods: {grpo: {learning_rte: 1.0}}}",
        "overrides: {methods: {gpro: {}}}",
        "overrides: {train_settings: {engine: zero9}}",
        "overrides: {evaluation: {tasks: {gsm8k: {shot: 1}}}}",
        "runs: {grpo: {learning_rate: high}}",
        "runs: {grpo: {method: gpro}}",
        "runs: {mine: {given: {kind: local, pth: x}}}",
        "overrides: null",
        "overrides: {models: null}",
        "overrides: {evaluation: {tasks: null}}",
        "overrides: {evaluation: {tasks: {mmlu: {shots: null}}}}",
        "runs: null",
        "runs: {grpo: null}",
        "studies: null",
    ],
)
def test_what_the_loader_refuses_by_its_form_does_not_fit(text, checker):
    raw = yaml.safe_load(text)
    with pytest.raises(jsonschema.ValidationError):
        checker.validate(raw)
    with pytest.raises(UserError):
        load(raw, ROOT / "workflow")


def nulls(mapping: dict, above: tuple[str, ...] = ()) -> list[dict]:
    """What takes one entry of a mapping away, each by itself, at any depth."""
    found = []
    for key, value in mapping.items():
        path = (*above, key)
        raw = None
        for name in reversed(path):
            raw = {name: raw}
        found += [raw, *(nulls(value, path) if isinstance(value, dict) else [])]
    return found


def test_null_fits_wherever_the_loader_takes_it(checker):
    """Of every entry of the laptop scale, and of what it leaves to defaults."""
    scale = read_yaml(ROOT / "workflow" / "scales" / "laptop.yaml")
    used = {
        name: item for name, item in scale["methods"].items() if name in ("grpo", "sft")
    }  # others are not looked at
    more = {"kl_settings": {}, "structure": {}, "gpu": {}, "studies": {"scalpel_vs_hammer": {"kl": {}}}}
    taken = []
    for below in nulls({**scale, **more, "methods": used}):
        raw = {"overrides": below}
        try:
            load(raw, ROOT / "workflow", papers=False)
        except UserError:
            continue
        taken.append(raw)
        assert checker.is_valid(raw), raw
    for raw in ({"models": {"smaller_model": None}}, {"kl": {"math_500": None}}, {"kl": None}, {"trace": None}):
        assert {"overrides": raw} in taken, "the loader takes it"


def test_fields_are_described_where_the_configuration_says_what_they_are():
    parts = schema()["$defs"]
    assert (
        parts["RunAxes"]["properties"]["steps_of"]["description"] == "as many optimizer steps as that run of the study"
    )
    assert parts["Run"]["properties"]["steps_of"] == parts["RunAxes"]["properties"]["steps_of"]
    assert parts["TrainSettings"]["properties"]["offload"]["description"]
    told = {text for part in parts.values() for item in part.get("properties", {}).values()
            if (text := item.get("description"))}  # fmt: skip
    assert len(told) > 100 and not {text for text in told if text.startswith(("type:", "fmt:", "noqa"))}
    assert schema()["properties"]["overrides"]["description"].startswith("laid over the scale, key by key")
