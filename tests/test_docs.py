"""Every code block of the pages: planned, dry-run, run, or named below with the reason why no test can."""

import json
import re
import shlex
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from tests.test_environments import checkout, made_of, make  # noqa: F401 (checkout is a fixture)
from tests.test_given import train_with_trl
from tests.test_newcomer import PAGES as PLANNED
from tests.test_workflow import ROOT, planned, snakemake

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
NOT_RUN = {  # command -> why no test runs it as it stands
    "$EDITOR slurm/site.yaml": "opens an editor",
    ".venv/bin/python -m scripts.train results/train/grpo-<digest>": "a placeholder; test_methods and test_kills train",
}


def blocks() -> list[tuple[str, str, str]]:
    """(page, language, text) of every fenced block."""
    found = [
        (page, *pair) for page in PAGES for pair in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", (ROOT / page).read_text())
    ]
    fences = sum(len(re.findall(r"(?m)^ *```", (ROOT / page).read_text())) for page in PAGES)
    assert fences == 2 * len(found), "a block is indented or left open"
    return found


def commands() -> list[str]:
    """Command lines of the blocks without a language, comments aside."""
    lines = [line for _, language, text in blocks() if not language for line in text.splitlines()]
    return list(
        dict.fromkeys(" ".join(shlex.split(line, comments=True, posix=False)) for line in lines if line.strip())
    )


def test_every_block_is_of_a_kind_that_is_tested():
    for page, language, text in blocks():
        if page == "docs/extend.md":
            continue  # test_worked_examples.py runs all of them
        assert language in ("", "yaml"), f"{page}: {text}"
        assert language != "yaml" or page in PLANNED, f"{page}: test_newcomer.py plans the YAML blocks of {PLANNED}"
    kinds = ("make ", ".venv/bin/snakemake")
    assert {command for command in commands() if not command.startswith(kinds)} == set(NOT_RUN), "say why, or test it"


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("make ")])
def test_make_commands_are_dry_run(command, checkout):  # noqa: F811
    made_of(checkout, "laptop")
    output = make(checkout, "-n", *shlex.split(command)[1:])
    programs = re.findall(r"-m scripts\.(\w+)", output)
    assert output.strip() and all((ROOT / "scripts" / f"{name}.py").is_file() for name in programs)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands() if command.startswith(".venv/bin/snakemake")])
def test_snakemake_commands_are_dry_run(command, tmp_path):
    for name in ("config.yaml", "slurm", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert planned(snakemake(*shlex.split(command)[1:], "-n", cwd=tmp_path))


@pytest.mark.slow
@pytest.mark.workflow
def test_five_lines_analyse_a_trl_output_directory(tiny_base, tmp_path):
    """The README's block on a run that TRL made, to the report; only the world and what is asked are made smaller."""
    (text,) = [text for page, _, text in blocks() if page == "README.md" and "studies: [checkpoints]" in text]
    assert len(text.splitlines()) == 5
    shutil.copytree(tiny_base, tmp_path / "DIR")
    train_with_trl(tmp_path / "DIR", tmp_path / "trl_output")
    config = yaml.safe_load(text)
    small = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())["overrides"]
    config["overrides"] |= {"world": small["world"], "evaluation": small["evaluation"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    snakemake("--cores", "2", cwd=tmp_path)
    results = tmp_path / "results"
    assert not (results / "train").exists() and not (results / "audit").exists()
    read = lambda pattern: pq.read_table(next(results.glob(pattern))).to_pylist()  # noqa: E731
    for table in ("kl/*/kl.parquet", "weight_change/*/weight_change.parquet", "evaluate/mine*/scores.parquet"):
        assert {row["step"] for row in read(table)} == {2, 4}, table
    shown = results / "figures" / "checkpoints"
    assert all((shown / f"{name}.pdf").is_file() for name in ("kl", "norms_course", "frontier", "benchmarks"))
    page = results / "report" / "checkpoints" / "index.html"
    assert page.stat().st_size > 50_000 and "mine" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["files"]


def test_pages_name_files_that_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
