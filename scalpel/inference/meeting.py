"""Where a run's trainer and its rollout servers find each other, and how each proves that it belongs to the run.

The launcher makes a directory that its user alone may enter. It holds the run's token and, for each server, a socket
that the launcher has bound, or, for a server on another node, the port that the server has bound there. Nothing is told
before it is bound, so nobody else can be standing at an address.

Every connection begins with a proof by both sides: each sends a random number, and answers with an HMAC over both
numbers and the address they met at. The token itself never travels, a proof holds for one connection, and one made for
another address is worth nothing. Nothing here imports torch.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from scalpel.artifact.files import write_atomically
from scalpel.config.types import Positive, Strict
from scalpel.inference import EngineSettings

SERVERS = "SCALPEL_ROLLOUT_SERVERS"  # the directory, in the environment of ranks
LISTENS = "listens on port"  # what a server on another node says first
NONCE = re.compile(r"[0-9a-f]{64}")
PATH_BYTES = 100  # that the path of a socket may have; Linux allows 107
BACKLOG = 128

Address = str | tuple[str, int]  # path of a socket, or host and port


class ServerOrder(Strict):
    """What a server is started with. completions, max_tokens: the most that one request may ask for."""

    kind: str
    model: str
    engine: EngineSettings
    completions: Positive
    max_tokens: Positive


class Meeting:
    """The private directory of a run. Files: run.json (token and number of servers), <n>.sock or <n>.json each."""

    def __init__(self, directory: Path):
        self.directory = directory

    @classmethod
    def create(cls, servers: int) -> Meeting:
        """A new one in the system's temporary directory, with a new token."""
        directory = Path(tempfile.mkdtemp(prefix="scalpel_"))
        if len(str(directory / f"{servers}.sock").encode()) > PATH_BYTES:
            directory.rmdir()
            directory = Path(tempfile.mkdtemp(prefix="scalpel_", dir="/tmp"))
        write_atomically(directory / "run.json", json.dumps({"token": secrets.token_hex(32), "servers": servers}))
        return cls(directory)

    @property
    def token(self) -> str:
        return self._run()["token"]

    @property
    def servers(self) -> int:
        return self._run()["servers"]

    def _run(self) -> dict:
        return json.loads((self.directory / "run.json").read_text())

    def listen(self, number: int) -> socket.socket:
        """Server `number`'s socket on this node, bound and listening."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.directory / f"{number}.sock"))
        listening.listen(BACKLOG)
        return listening

    def tell(self, number: int, host: str, port: int) -> None:
        """Where server `number` listens on its node."""
        write_atomically(self.directory / f"{number}.json", json.dumps([host, port]))

    def forget(self, number: int) -> None:
        """Server `number` ended: nobody is to be asked at the port it had."""
        (self.directory / f"{number}.json").unlink(missing_ok=True)

    def address(self, number: int) -> Address:
        """Of server `number`; ConnectionError when it has not said where it listens."""
        path = self.directory / f"{number}.sock"
        if path.exists():
            return str(path)
        with suppress(FileNotFoundError):
            host, port = json.loads((self.directory / f"{number}.json").read_text())
            return host, port
        raise ConnectionError(f"server {number} has not said where it listens")

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def listen_on(host: str) -> socket.socket:
    """A socket on a free port of the interface that `host` is the address of; of all interfaces where none is."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=BACKLOG)
    except OSError:
        return socket.create_server(("", 0), backlog=BACKLOG)


def nonce() -> str:
    """A random number for one connection: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def proof(token: str, side: str, client_nonce: str, server_nonce: str, place: str) -> str:
    """What `side`, "client" or "server", answers with; place: as `place_of` the server's end of the connection."""
    text = "\n".join((side, client_nonce, server_nonce, place))
    return hmac.new(token.encode(), text.encode(), "sha256").hexdigest()


def same(one: object, other: str) -> bool:
    """Whether `one`, whatever was sent, is the text `other`; takes as long wherever they differ."""
    return isinstance(one, str) and hmac.compare_digest(one.encode(errors="surrogatepass"), other.encode())


def place_of(name: Any) -> str:
    """A socket's name (getsockname, getpeername) as both ends write it."""
    return f"{name[0].removeprefix('::ffff:')} {name[1]}" if isinstance(name, tuple) else "here"
