"""A checkout of the project in a folder whose name a shell would execute, with a Python of its own in it."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent
NAME = """it's a "b";touch x #1 $(touch y) `touch z` {q}"""
PARTS = ("Makefile", "Snakefile", "config.yaml", "envs", "profiles", "scalpel", "scripts", "slurm", "workflow")


def own_python(checkout: Path) -> Path:
    """A virtual environment in the checkout that has the packages of this one; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    packages = Path(numpy.__file__).parents[1]
    (site,) = (checkout / ".venv" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n")
    return checkout / ".venv" / "bin" / "python"


def checkout(folder: Path) -> Path:
    """A copy of the project at folder/NAME."""
    there = folder / NAME
    there.mkdir(parents=True)
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, there / part)
    shutil.copy(ROOT / "tests" / "smoke.yaml", there / "config.yaml")
    return there


def executed(folder: Path) -> list[Path]:
    """Files that a shell made below the folder which took part of the path for a command."""
    return [path for path in folder.rglob("[xyz]") if path.is_file()]
