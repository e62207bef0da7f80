"""Installed packages against the lock that a plan needs."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.markers import InvalidMarker, Marker

from scalpel.preflight.finding import ERROR, OK, WARNING, Finding, some


def environment(on_gpus: bool, locks: Path) -> Finding:
    """Installed packages against the lock this plan needs: gpu.lock, which holds all of laptop.lock, for GPU jobs."""
    name = "gpu.lock" if on_gpus and (locks / "gpu.lock").is_file() else "laptop.lock"
    pins: dict[str, str] = {}
    for file in ("torch.lock", name):
        pins |= read_pins((locks / file).read_text()) if (locks / file).is_file() else {}
    absent, other = [], []
    for package, version in pins.items():
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            absent.append(package)
            continue
        if installed.split("+")[0] != version.split("+")[0]:  # 2.13.0+cpu is a build of 2.13.0
            other.append(f"{package} {installed} for {version}")
    if not absent and not other:
        return Finding("packages", OK, f"All {len(pins)} packages are those of envs/{name}.")
    parts = [f"{len(absent)} of its {len(pins)} packages are not installed ({some(absent)})"] if absent else []
    parts += [f"{len(other)} have another version ({some(other)})"] if other else []
    remedy = f"run `make {'setup-gpu' if name == 'gpu.lock' else 'setup'}`"
    return Finding("packages", ERROR if absent else WARNING, f"envs/{name}: {'; '.join(parts)}; {remedy}.")


def read_pins(lock: str) -> dict[str, str]:
    """Name -> version of the pins that hold on this machine and Python."""
    pins = {}
    for line in lock.splitlines():
        match = re.match(r"([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==([^\s;\\]+)\s*(?:;([^\\]*))?", line)
        if not match:
            continue
        name, version, marker = match.groups()
        try:
            holds = not marker or Marker(marker.strip()).evaluate()
        except InvalidMarker:
            holds = True
        if holds:
            pins[name] = version
    return pins
