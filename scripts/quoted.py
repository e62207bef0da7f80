"""Quote this environment's path in its own programs: python -m scripts.quoted, after pip has written them.

pip begins a program in bin/ with a line for the shell when the environment's path holds a blank, and puts the path
within double quotes there: a shell would execute a ``$(...)`` that is part of it.
"""

import os
import shlex
import sys
from pathlib import Path

FIRST = b"#!/bin/sh\n'''exec' "  # of such a program; then the path, and what the shell is to pass on
REST = b' "$0" "$@"\n'


def quote(program: Path, python: str) -> None:
    """Write the program's first lines again if they are such; its mode stays."""
    content = program.read_bytes()
    if not content.startswith(FIRST) or REST not in content:
        return
    text = FIRST + os.fsencode(shlex.quote(python)) + content[content.index(REST) :]
    partial = program.with_name(f".{program.name}.quoted")
    partial.write_bytes(text)
    partial.chmod(program.stat().st_mode)
    partial.replace(program)


if __name__ == "__main__":
    for program in sorted(Path(sys.executable).parent.iterdir()):
        if program.is_file() and not program.is_symlink():
            quote(program, sys.executable)
