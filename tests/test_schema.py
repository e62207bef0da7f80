"""The JSON schema of config.yaml: current, and it takes what the loader takes."""

import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

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
    ],
)
def test_what_the_loader_refuses_by_its_form_does_not_fit(text, checker):
    with pytest.raises(jsonschema.ValidationError):
        checker.validate(yaml.safe_load(text))
