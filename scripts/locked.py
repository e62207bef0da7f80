"""Entries of a lock file, with their hashes: python -m scripts.locked envs/gpu.lock setuptools

In place of names, --cuda-of-torch: what the installed build of torch brings for CUDA, nothing for a CPU build. Needs
the standard library alone: it runs before anything else is installed.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

CUDA = re.compile(r"(nvidia-|cuda-|triton)")


def entries(lock: Path) -> dict[str, str]:
    """Name -> text of every entry of a lock, its hashes included."""
    parts = re.split(r"^(?=[a-zA-Z0-9])", lock.read_text(), flags=re.MULTILINE)
    return {re.match(r"[\w.-]+", part)[0]: part for part in parts if part.strip()}


def cuda_of_torch(locked: dict[str, str]) -> list[str]:
    """The CUDA packages of the lock, if the installed torch asks for any."""
    asked = [name for name in metadata.requires("torch") or [] if CUDA.match(name)]
    return [name for name in locked if CUDA.match(name)] if asked and sys.platform == "linux" else []


def main() -> int:
    lock, *names = sys.argv[1:]
    locked = entries(Path(lock))
    names = cuda_of_torch(locked) if names == ["--cuda-of-torch"] else names
    for name in names:
        if name not in locked:
            print(f"error: {lock} has no entry {name}", file=sys.stderr)
            return 2
        sys.stdout.write(locked[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
