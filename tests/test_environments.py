"""The locked environments: what they hold, that every file in them has a hash, and how the GPU's differs."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENVS = Path(__file__).resolve().parent.parent / "envs"
LOCKS = ("torch", "laptop", "gpu")
ENTRY = re.compile(r"([a-z0-9][a-z0-9-]*)==([0-9][\w.]*)(?: ; ([^\\]+?))? \\")
HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})( \\)?")
NODE = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "implementation_name": "cpython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}

# Name: (laptop, gpu). vllm 0.31.0 asks for fastapi<0.137, its mistral-common for numpy<2.4.
DIFFERENCES = {
    "fastapi": ("0.165.0", "0.136.3"),
    "numpy": ("2.4.6", "2.3.5"),
}


def entries(lock: str) -> list[tuple[str, str, str | None, set[str]]]:
    """Name, version, marker and hashes of every entry. Fails at any other line: a URL, an index, a missing hash."""
    found, open_entry = [], False
    for number, line in enumerate((ENVS / f"{lock}.lock").read_text().splitlines(), 1):
        pattern = HASH if open_entry else ENTRY
        match = pattern.fullmatch(line)
        assert match, f"envs/{lock}.lock, line {number}: {line!r} is not of the form {pattern.pattern}"
        if pattern is ENTRY:
            found.append((*match.groups(), set()))
            open_entry = True
        else:
            found[-1][3].add(match[1])
            open_entry = bool(match[2])
    assert not open_entry, f"envs/{lock}.lock ends within an entry"
    return found


def versions(*locks: str) -> dict[str, str]:
    """What a GPU node would install."""
    applying = [e for lock in locks for e in entries(lock) if e[2] is None or Marker(e[2]).evaluate(NODE)]
    assert len({name for name, *_ in applying}) == len(applying), "a package is named twice"
    return {name: version for name, version, *_ in applying}


def requirements(file: str) -> dict[str, Requirement]:
    """The requirements of an .in or override file and of the files it refers to."""
    found = {}
    for line in (ENVS / file).read_text().splitlines():
        if line.startswith("-r "):
            found |= requirements(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            found[canonicalize_name(Requirement(line).name)] = Requirement(line)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_pinned_and_hashed_and_no_line_names_a_host(lock):
    assert entries(lock)


@pytest.mark.parametrize(
    ("wanted", "locks", "overrides"),
    [
        ("torch.in", ["torch"], []),
        ("laptop.in", ["torch", "laptop"], ["overrides.txt"]),
        ("gpu.in", ["gpu"], ["overrides.txt", "gpu-overrides.txt"]),
    ],
)
def test_the_lock_holds_what_was_asked_for(wanted, locks, overrides):
    asked = requirements(wanted)
    for file in overrides:
        asked |= requirements(file)
    locked = versions(*locks)
    assert not set(asked) - set(locked)
    refused = {name: locked[name] for name, one in asked.items() if not one.specifier.contains(locked[name])}
    assert not refused


def test_the_gpu_lock_is_the_laptops_but_for_the_known_differences():
    laptop, gpu = versions("torch", "laptop"), versions("gpu")
    assert not set(laptop) - set(gpu)
    assert {name: (laptop[name], gpu[name]) for name in laptop if laptop[name] != gpu[name]} == DIFFERENCES


def test_torch_on_the_gpu_comes_from_the_index_and_fits_its_compiler():
    (torch,) = (hashes for name, _, _, hashes in entries("torch") if name == "torch")
    (of_gpu,) = (hashes for name, _, _, hashes in entries("gpu") if name == "torch")
    assert of_gpu < torch  # torch.lock also lists a CPU build, which is not on the index
    gpu = versions("gpu")
    parts = ("nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc", "nvidia-cuda-cccl", "nvidia-nvvm")
    assert {".".join(gpu[name].split(".")[:2]) for name in parts} == {"13.0"}


def sections(recipe: str) -> dict[str, str]:
    """The sections of an Apptainer recipe; what comes before the first has the name header."""
    parts = re.split(r"^%(\w+)\n", recipe, flags=re.MULTILINE)
    return {"header": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_apptainer_recipe_installs_the_gpu_lock():
    recipe = sections((ENVS / "apptainer.def").read_text())
    assert re.search(r"^From: python@sha256:[0-9a-f]{64}$", recipe["header"], re.MULTILINE)
    source, target = recipe["files"].split()
    assert (ENVS.parent / source).samefile(ENVS / "gpu.lock")
    installs = [line.split() for line in recipe["post"].splitlines() if "pip install" in line]
    assert all({"--require-hashes", "--no-deps", "-r"} <= set(words) for words in installs)
    assert "--no-build-isolation" in installs[-1] and installs[-1][-1] == target
    for name in ("post", "environment"):
        assert subprocess.run(["sh", "-n"], input=recipe[name], text=True).returncode == 0
    program = re.search(r"<<'PROGRAM'\n(.*)^PROGRAM$", recipe["test"], re.MULTILINE | re.DOTALL)
    compile(program[1], "%test", "exec")
    assert target in program[1]


# ---------------------------------------------------------------- the Makefile

ROOT = ENVS.parent
OF = {"laptop": ("torch", "laptop", "gpu"), "gpu": ("gpu",)}  # locks that an environment is made from


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Makefile and locks of a fresh clone, newer than the environment, whose Python only says what it is asked."""
    shutil.copytree(ENVS, tmp_path / "envs")
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "asked: $*"\n')
    python.chmod(0o755)
    return tmp_path


def made_of(checkout: Path, kind: str) -> None:
    total = hashlib.sha256(b"".join((checkout / "envs" / f"{lock}.lock").read_bytes() for lock in OF[kind]))
    stamp = checkout / ".venv" / ".made_of"
    stamp.write_text(f"{kind} {total.hexdigest()}\n")
    os.utime(stamp, (0, 0))


def make(checkout: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}", *words], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", OF)
@pytest.mark.parametrize("target", ["status", "clean-unused", "verify", "test-slurm", "demo"])
def test_a_finished_environment_is_left_alone(checkout, kind, target):
    made_of(checkout, kind)
    if target == "demo":
        output = make(checkout, "-n", target)
        assert "snakemake" in output
    else:
        output = make(checkout, target)
        assert "asked: -m" in output
    assert "pip" not in output and "venv .venv" not in output


@pytest.mark.parametrize("kind", OF)
def test_an_environment_of_other_locks_is_made_again_and_only_looked_at_by_status(checkout, kind):
    made_of(checkout, kind)
    with open(checkout / "envs" / "gpu.lock", "a") as lock:
        lock.write("\n")
    assert "pip install" in make(checkout, "-n", "test-slurm")
    for target in ("status", "clean-unused", "extend"):
        assert "pip install" not in make(checkout, target)
    assert "asked: -m scripts.status --scale cluster" in make(checkout, "status", "SCALE=cluster")
    assert make(checkout, "clean-unused", "YES=1").split() == ["asked:", "-m", "scripts.clean_unused", "--yes"]


def test_make_lists_every_target():
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    targets = set(re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)[1].split()) - {"help", "setup-laptop"}
    told = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {target for target in targets if f"make {target} " not in told.replace(":", " ")} == set()


@pytest.mark.parametrize("target", ["status", "clean-unused", "verify", "repair", "card", "push", "extend"])
def test_without_an_environment_looking_says_what_to_do_and_installs_nothing(checkout, target):
    shutil.rmtree(checkout / ".venv")
    done = subprocess.run(["make", target], cwd=checkout, capture_output=True, text=True)
    assert done.returncode and "error: there is no environment yet; run make setup" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("kind", OF)
def test_every_package_is_installed_by_its_hash(checkout, kind):
    """Whatever pip puts into an environment comes from a lock whose entries have hashes, built by what a lock gave."""
    recipe = make(checkout, "-n", f"setup-{kind}")
    asked = [line.split("pip ", 1)[1].split() for line in recipe.splitlines() if "-m pip" in line]
    installs = [words for words in asked if words[0] == "install"]
    assert len(installs) >= 2 and all({"--require-hashes", "--no-deps", "-r"} <= set(words) for words in installs)
    locks = [words[words.index("-r") + 1] for words in installs]
    whole = next(i for i, lock in enumerate(locks) if lock == f"envs/{kind}.lock")
    assert "--no-build-isolation" in installs[whole] and locks[whole - 1].endswith("first.lock")
    others = [words for words in asked if words[0] != "install"]  # fetched into a folder, and installed from it by hash
    assert all(words[0] == "download" and {"--no-deps", "--dest"} <= set(words) for words in others)
    made = set(re.findall(r"scripts\.locked (\S+) \S+ > (\S+)", recipe))
    assert {lock for lock in locks if lock.startswith(".venv")} == {target for _, target in made}
    assert {source for source, _ in made} <= {f"envs/{lock}.lock" for lock in LOCKS}
