"""Completions of a policy in training from servers of their own: what the trainer sends and gets (server.py answers).

HTTP over a socket file, or over TCP to other nodes. ``GET /challenge`` comes first on every connection: both sides
prove that they know the run's token (meeting.py) before a prompt or a weight is sent. Then ``GET /health``;
``POST /weights``, names, dtypes and shapes of the policy, and ``PUT /weights``, its bytes, before the first completions
of each step; ``POST /complete``. A server knows which step's weights it holds and refuses others, so one that died and
was started again is given the weights and asked once more, with the same seeds. TRL's own server takes weights by
NCCL: a server that dies mid-way leaves the trainer hanging in a collective, and there is no CPU version to test.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from scalpel.errors import UserError
from scalpel.inference.meeting import NONCE, SERVERS, Address, Meeting, nonce, place_of, proof, same
from scalpel.inference.requests import Completion, Request
from scalpel.weights import SAFETENSORS

PROOF_SECONDS = 10.0  # that a server may take to prove itself
COMPLETION_SECONDS = 3600.0  # that one step's completions may take
OTHER_WEIGHTS = 409  # status: the server does not hold the step's weights


class Servers:
    """Client of the rollout servers of a run, used by rank 0 alone."""

    def __init__(self, meeting: Meeting, seconds: float, dtype: torch.dtype | None = None):
        """seconds: how long a server may take to start, or to come back after it died. dtype: in which weights are
        sent; None: as they are."""
        self.meeting, self.seconds, self.dtype = meeting, seconds, dtype

    @classmethod
    def of_environment(cls, seconds: float, dtype: torch.dtype | None = None) -> Servers | None:
        """The servers the launcher started; None when ranks complete for themselves."""
        directory = os.environ.get(SERVERS)
        return cls(Meeting(Path(directory)), seconds, dtype) if directory else None

    @cached_property
    def token(self) -> str:
        return self.meeting.token

    def complete(
        self,
        requests: Sequence[Request],
        weights: list[tuple[str, torch.Tensor]],
        version: int,
        temperature: float,
        top_p: float,
        logprobs: bool = False,
        top_k: int | None = None,
    ) -> list[list[Completion]]:
        """Completions of every request, as an engine's `complete`, by the policy `weights` after `version` steps."""
        sampling: dict[str, Any] = {
            "version": version,
            "temperature": temperature,
            "top_p": top_p,
            "logprobs": logprobs,
        }
        sampling["top_k"] = top_k
        share = -(-len(requests) // self.meeting.servers)
        parts = [requests[i : i + share] for i in range(0, len(requests), share)]
        with ThreadPoolExecutor(len(parts)) as pool:
            answers = pool.map(
                lambda number: self._complete(number, {"requests": parts[number]} | sampling, weights, version),
                range(len(parts)),
            )
            return [completions for answer in answers for completions in answer]

    def _complete(
        self, number: int, asked: dict, weights: list[tuple[str, torch.Tensor]], version: int
    ) -> list[list[Completion]]:
        body = json.dumps(asked).encode()
        started = time.monotonic()
        while True:
            try:
                status, answer = self._request(number, "POST", "/complete", body, COMPLETION_SECONDS)
                if status == 200:
                    return [[Completion(*one) for one in mine] for mine in json.loads(answer)["completions"]]
                if status != OTHER_WEIGHTS:
                    raise UserError(f"rollout server {number} answers {status}: {said(answer)}")
                self._send(number, weights, version)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() - started > self.seconds + COMPLETION_SECONDS:
                    raise UserError(f"rollout server {number} keeps failing ({error}); see its lines.") from None
                print(f"no answer of rollout server {number} ({error}): waiting for it", file=sys.stderr, flush=True)
                self.wait(number)

    def wait(self, number: int = 0) -> None:
        """Until the server answers; UserError after `seconds`."""
        end, last = time.monotonic() + self.seconds, "none"
        while time.monotonic() < end:
            try:
                if self._request(number, "GET", "/health", seconds=PROOF_SECONDS)[0] == 200:
                    return
            except (OSError, http.client.HTTPException) as error:
                last = str(error) or type(error).__name__
            time.sleep(0.5)
        raise UserError(
            f"rollout server {number} did not answer within {self.seconds:.0f} s ({last}; "
            "train_settings.server.start_seconds); see its lines in the log."
        )

    def _send(self, number: int, weights: list[tuple[str, torch.Tensor]], version: int) -> None:
        dtypes = [self.dtype or tensor.dtype for _, tensor in weights]
        tensors = [
            [name, SAFETENSORS[d], list(tensor.shape)] for (name, tensor), d in zip(weights, dtypes, strict=True)
        ]
        size = sum(tensor.numel() * d.itemsize for (_, tensor), d in zip(weights, dtypes, strict=True))
        with self._connected(number, COMPLETION_SECONDS) as connection:
            announced = json.dumps({"version": version, "tensors": tensors}).encode()
            status, answer = connection.ask("POST", "/weights", announced)
            if status == 200:
                connection.begin("PUT", "/weights", size)
                for (_, tensor), dtype in zip(weights, dtypes, strict=True):
                    flat = tensor.detach().to(dtype).contiguous().reshape(-1).view(torch.uint8)
                    connection.send(memoryview(flat.cpu().numpy()))
                status, answer = connection.answer()
            if status != 200:
                raise UserError(f"rollout server {number} refuses the weights: {said(answer)}")

    def _request(
        self, number: int, method: str, path: str, body: bytes = b"", seconds: float = 60.0
    ) -> tuple[int, bytes]:
        with self._connected(number, seconds) as connection:
            return connection.ask(method, path, body)

    @contextlib.contextmanager
    def _connected(self, number: int, seconds: float) -> Iterator[Connection]:
        connection = Connection(self.meeting.address(number), self.token)
        try:
            connection.prove()
            connection.sock.settimeout(seconds)
            yield connection
        finally:
            connection.close()


class Connection(http.client.HTTPConnection):
    """To one server, over a socket file or TCP. `prove` comes first; all that follows carries this side's proof."""

    auto_open = 0  # http.client would connect again by itself, to whoever answers then

    def __init__(self, address: Address, token: str):
        host, port = ("localhost", None) if isinstance(address, str) else address
        super().__init__(host, port, timeout=PROOF_SECONDS)
        self.address, self.token, self.authorization = address, token, ""

    def connect(self) -> None:
        if not isinstance(self.address, str):
            return super().connect()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.address)

    def prove(self) -> None:
        """Exchange proofs; ConnectionError when who answers does not know the token: it is sent nothing else."""
        mine = nonce()
        self.connect()
        place = place_of(self.sock.getpeername())
        late = threading.Timer(PROOF_SECONDS, _cut, [self.sock])  # of the whole exchange, byte by byte or not
        late.daemon = True
        late.start()
        try:
            self.request("GET", f"/challenge?nonce={mine}")
            response = self.getresponse()
            content = response.read(4096)
        finally:
            late.cancel()
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(content)
            if isinstance(answer, dict) and isinstance(answer.get("nonce"), str) and NONCE.fullmatch(answer["nonce"]):
                both = (mine, answer["nonce"], place)
                if response.status == 200 and same(answer.get("proof"), proof(self.token, "server", *both)):
                    self.authorization = proof(self.token, "client", *both)
                    return
        raise ConnectionError(f"what answers at {place} does not prove that it belongs to this run")

    def begin(self, method: str, path: str, size: int) -> None:
        """Send all of a request but its `size` bytes of body."""
        self.putrequest(method, path)
        self.putheader("Authorization", self.authorization)
        self.putheader("Content-Length", str(size))
        self.endheaders()

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and content of the answer."""
        self.begin(method, path, len(body))
        self.send(body)
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        response = self.getresponse()
        return response.status, response.read()


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def said(answer: bytes) -> str:
    """What a server's answer says, for people."""
    return answer.decode(errors="replace")[:300]


def full_weights(model: Any, dtype: torch.dtype | None = None, kept: bool = True) -> list[tuple[str, torch.Tensor]]:
    """Every parameter whole, by its name in the saved model; a collective of all ranks when they are sharded.

    dtype: of sharded ones once they are gathered, which are cast before and then copied to the host; None: as they
    are. kept: false on a rank that takes part in gathering and wants none of it: one tensor at a time is whole there.
    """
    found = []
    for name, parameter in model.named_parameters():
        tensor = parameter
        if hasattr(parameter, "full_tensor"):
            whole = parameter.detach().to(dtype or parameter.dtype).full_tensor()
            tensor = whole.cpu() if kept else whole
        if kept:
            found.append((name.removeprefix("module."), tensor))
    return found
