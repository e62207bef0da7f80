"""Disks that refuse to be written, however the libraries say so, in one sentence.

Python raises OSError; safetensors, tokenizers and torch raise errors of their own that quote the system's.
"""

from __future__ import annotations

import contextlib
import errno
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from scalpel.errors import Interrupted, UserError

SENTENCES = {  # {place}: a file or directory
    errno.ENOSPC: "No space left on the disk of {place}{when}; free some and start again",
    errno.EDQUOT: "No space left to you on the disk of {place}{when}: your quota is used up; free some and start again",
    errno.EFBIG: "{place}: a file would be larger than this process may write{when} (ulimit -f); raise that limit and "
    "start again",
    errno.EROFS: "{place} cannot be written{when}: its file system is read-only; let it be written and start again",
    errno.EACCES: "{place} may not be read or written by you{when} (permission denied); change its rights or owner and "
    "start again",
    errno.EIO: "{place}: the disk reports an error{when}; have it looked at, then start again",
}
SENTENCES[errno.EPERM] = SENTENCES[errno.EACCES]
QUOTED = re.compile(r"(?:os error |\[?[Ee]rrno )(\d+)")  # Rust's words, and Python's and Arrow's
WORDS = {
    "No space left": errno.ENOSPC,
    "quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
    "Read-only file system": errno.EROFS,
}
TORCH = ("PytorchStreamWriter", "unexpected pos")  # torch.save's words for a failed write, whatever the reason
LITTLE = 64 << 20  # bytes: less is a full disk


def sentence(error: BaseException, directory: Path, when: str = "") -> str | None:
    """What is wrong with the disk when an error, or one it was raised from, says so; None when none does.

    directory: what was being written, where the error names no file. when: ``after step 60`` and the like.
    """
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        number = _number(at, directory)
        if number in SENTENCES:
            place = getattr(at, "filename", None) or directory
            return SENTENCES[number].format(place=place, when=f" {when}" if when else "")
        seen.append(at)
        at = at.__cause__ or at.__context__
    return None


@contextlib.contextmanager
def disk_errors(directory: Path, when: str = "", kept: str = "what was finished is kept") -> Iterator[None]:
    """Turn an error of the disk that the block raises into a UserError. kept: what the sentence ends with."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        text = sentence(error, directory, when)
        if text is None:
            raise
        raise UserError(f"{text}: {kept}.") from error


def _number(error: BaseException, directory: Path) -> int | None:
    """The system's error number in an exception's own number, or quoted in its text."""
    text = str(error)
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number is not None:
        return number
    quoted = QUOTED.search(text)
    if quoted:
        return int(quoted[1])
    for words, number in WORDS.items():
        if words in text:
            return number
    if isinstance(error, RuntimeError) and any(words in text for words in TORCH):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and shutil.disk_usage(directory).free >= LITTLE:
            return errno.EFBIG
        return errno.ENOSPC if shutil.disk_usage(directory).free < LITTLE else None
    return None
