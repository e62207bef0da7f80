"""What the next person meets: extension points, and the files that other tools read."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
