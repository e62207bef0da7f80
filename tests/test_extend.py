"""What the next person meets: extension points, and the files that other tools read."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from scalpel.config.scale import Scale
from scalpel.config.study import RunAxes, StudyFile, UserConfig
from scalpel.errors import UserError
from scalpel.exhibits import find
from scalpel.methods import METHODS
from scalpel.stages import STAGES
from scripts import schema
from scripts.extend import points

ROOT = Path(__file__).resolve().parent.parent


def test_every_extension_point_names_files_that_are_there_and_what_there_is():
    found = {point.what: point for point in points()}
    for point in found.values():
        assert point.there and all((ROOT / path).is_file() for path in point.start), point
    assert set(found["training method"].there) == set(METHODS) and found["stage of the DAG"].there == list(STAGES)
    for kind in found["figure or table"].there:
        assert find(kind, ROOT, "a test").name == kind
    packages = {path.name for path in (ROOT / "scalpel").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {"methods", "exhibits", "claims", "evaluation", "chat"} <= packages
    said = subprocess.run(
        [sys.executable, "-m", "scripts.extend"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(point.what in said.stdout for point in found.values())


def kinds_of(annotation) -> set[tuple[str, ...]]:
    """The unions of kinds below a class of the typed configuration: of each, what may stand as `kind`."""
    found, seen = set(), set()

    def visit(part) -> None:
        if isinstance(part, type) and issubclass(part, BaseModel):
            if part not in seen:
                seen.add(part)
                for field in part.model_fields.values():
                    visit(field.annotation)
            return
        if get_origin(part) is Annotated:
            return visit(get_args(part)[0])
        args = [arg for arg in get_args(part) if not isinstance(arg, str)]
        kinds = [get_args(model.model_fields["kind"].annotation)[0] for model in map(bare, args) if has_kind(model)]
        if kinds:
            found.add(tuple(kinds))
        for arg in args:
            visit(arg)

    def bare(part):
        return get_args(part)[0] if get_origin(part) is Annotated else part

    def has_kind(part) -> bool:
        return isinstance(part, type) and issubclass(part, BaseModel) and "kind" in part.model_fields

    visit(annotation)
    return found


def test_every_kind_of_the_configuration_and_every_folder_of_the_workflow_is_an_extension_point():
    """So that a union or a folder that is added is missed here, and not by the reader."""
    there = {tuple(point.there) for point in points()}
    found = set.union(*(kinds_of(model) for model in (Scale, UserConfig, StudyFile, RunAxes)))
    assert len(found) >= 5 and found <= there, found - there
    files = {path for point in points() for path in point.start}
    for folder in (ROOT / "workflow").iterdir():
        if folder.is_dir() and folder.name != "report":  # the caption of an exhibit in Snakemake's report
            assert any(path.startswith(f"workflow/{folder.name}/") for path in files), folder
            stems = tuple(sorted(path.stem for path in folder.glob("*.yaml")))
            assert not stems or stems in there, folder


def hooks() -> list[dict]:
    return yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook["id"])
def test_a_hook_passes_here_and_fails_on_what_it_is_for(hook, tmp_path):
    if not (ROOT / ".venv").exists():
        pytest.skip("the hooks run the environment of `make setup`")
    bad = {"ruff": "import os\n", "ruff-format": "x = {  }\n", "snakefmt": "rule a:\n  input: 'x'\n"}
    words = [*shlex.split(hook["entry"])]
    if hook["id"] in bad:
        path = tmp_path / ("a.smk" if hook["id"] == "snakefmt" else "a.py")
        path.write_text(bad[hook["id"]])
        assert subprocess.run([*words, str(path)], cwd=ROOT, capture_output=True).returncode
        good = "Snakefile" if hook["id"] == "snakefmt" else "scripts/status.py"
        assert subprocess.run([*words, good], cwd=ROOT, capture_output=True).returncode == 0
    else:
        assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0


def test_a_schema_that_is_not_current_fails_the_check(tmp_path, monkeypatch):
    path = tmp_path / "config.schema.json"
    path.write_text(schema.PATH.read_text().replace('"tracking"', '"trackin"', 1))
    monkeypatch.setattr(schema, "PATH", path)
    monkeypatch.setattr(schema, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["schema", "--check"])
    with pytest.raises(UserError, match="run `make schema`"):
        schema.main()
    monkeypatch.setattr(sys, "argv", ["schema"])
    assert schema.main() == 0 and '"tracking"' in path.read_text()


def test_what_other_tools_read_is_true():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert citation["license"] == "Apache-2.0" and citation["cff-version"] == "1.2.0"
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()
    catalog = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert catalog["report"] is True and set(catalog["software-stack-deployment"]) == {
        "conda", "singularity", "singularity+conda",
    }  # fmt: skip
