"""sha256 of source files, remembered in the user's cache so that a large file is read once."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from scalpel.artifact.files import write_atomically
from scalpel.artifact.identity import sha256_file

LARGE = 2 << 30  # bytes: reading takes seconds, so it is said


def file_digest(path: Path) -> str:
    """sha256 of a source file, remembered by path, size, times and inode.

    The memory lies in the user's cache directory: planning must not write into results/. It trusts that a file
    changed since has another size, change time or inode; the stage that reads the file hashes it again.
    """
    stat = path.stat()
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    key = hashlib.sha256(identity.encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalpel" / "sha256" / key
    try:
        remembered = cache.read_text()
        if len(remembered) == 64:
            return remembered
    except OSError:
        pass
    if stat.st_size > LARGE:
        print(f"hashing {path} ({stat.st_size / 1e9:.1f} GB), once", file=sys.stderr, flush=True)
    digest = sha256_file(path)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, digest)
    except OSError:  # a read-only home costs time, not correctness
        pass
    return digest
