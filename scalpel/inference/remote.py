"""Completions of a policy in training from servers of their own: what the trainer sends and gets (server.py answers).

Three requests over HTTP: ``GET /health``; ``POST /weights``, a safetensors stream of the policy, sent before the
first completions of each step; ``POST /complete``. A server knows which step's weights it holds and refuses
others, so one that died and was started again is given the weights and asked once more, with the same seeds.
TRL's own server takes weights by NCCL: a server that dies mid-way leaves the trainer hanging in a collective,
and there is no CPU version to test.
"""

from __future__ import annotations

import http.client
import json
import os
import struct
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import torch

from scalpel.errors import UserError
from scalpel.inference.requests import Completion, Request
from scalpel.weights import SAFETENSORS

SERVERS, TOKEN = "SCALPEL_ROLLOUT_SERVERS", "SCALPEL_ROLLOUT_TOKEN"
PORTS_TRIED = 18650  # of servers on nodes of their own, where nobody can ask for a free port beforehand
COMPLETION_SECONDS = 3600.0  # that one step's completions may take
OTHER_WEIGHTS = 409  # status: the server does not hold the step's weights


class Servers:
    """Client of the rollout servers named in the environment, used by rank 0 alone."""

    def __init__(self, urls: Sequence[str], token: str, seconds: float):
        self.urls, self.token, self.seconds = list(urls), token, seconds

    @classmethod
    def of_environment(cls, seconds: float) -> Servers | None:
        """The servers the launcher started; None when ranks complete for themselves.

        seconds: how long a server may take to start, or to come back after it died.
        """
        urls = json.loads(os.environ.get(SERVERS, "[]"))
        return cls(urls, os.environ[TOKEN], seconds) if urls else None

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
        sampling = {"version": version, "temperature": temperature, "top_p": top_p, "logprobs": logprobs}
        sampling["top_k"] = top_k
        share = -(-len(requests) // len(self.urls))
        parts = [requests[i : i + share] for i in range(0, len(requests), share)]
        with ThreadPoolExecutor(len(parts)) as pool:
            answers = pool.map(
                lambda url, part: self._complete(url, {"requests": part} | sampling, weights, version), self.urls, parts
            )
            return [completions for answer in answers for completions in answer]

    def _complete(self, url: str, asked: dict, weights, version: int) -> list[list[Completion]]:
        body = json.dumps(asked).encode()
        started = time.monotonic()
        while True:
            try:
                status, answer = self._request(url, "POST", "/complete", body, timeout=COMPLETION_SECONDS)
                if status == 200:
                    return [[Completion(*one) for one in mine] for mine in json.loads(answer)["completions"]]
                if status != OTHER_WEIGHTS:
                    raise UserError(f"the rollout server at {url} answers {status}: {answer.decode()[:300]}")
                self._send(url, weights, version)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() - started > self.seconds + COMPLETION_SECONDS:
                    raise UserError(f"the rollout server at {url} keeps failing ({error}); see its lines.") from None
                print(f"no answer of the rollout server ({type(error).__name__}): waiting for it", file=sys.stderr)
                self.wait(url)

    def wait(self, url: str) -> None:
        """Until the server answers; UserError after `seconds`."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            try:
                if self._request(url, "GET", "/health", timeout=10.0)[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.5)
        raise UserError(
            f"the rollout server at {url} did not answer within {self.seconds:.0f} s "
            "(train_settings.server.start_seconds); see its lines in the log."
        )

    def _send(self, url: str, weights: list[tuple[str, torch.Tensor]], version: int) -> None:
        header, offset = {}, 0
        for name, tensor in weights:
            size = tensor.numel() * tensor.element_size()
            where = [offset, offset + size]
            header[name] = {"dtype": SAFETENSORS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": where}
            offset += size
        text = json.dumps(header).encode()
        connection = self._connection(url, COMPLETION_SECONDS)
        try:
            connection.putrequest("POST", f"/weights?version={version}")
            connection.putheader("Authorization", self.token)
            connection.putheader("Content-Length", str(8 + len(text) + offset))
            connection.endheaders(struct.pack("<Q", len(text)) + text)
            for _, tensor in weights:
                flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                connection.send(memoryview(flat.cpu().numpy()))
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise UserError(f"the rollout server at {url} refuses the weights: {answer.decode()[:300]}")
        finally:
            connection.close()

    def _connection(self, url: str, timeout: float) -> http.client.HTTPConnection:
        where = urlsplit(url)
        return http.client.HTTPConnection(where.hostname, where.port, timeout=timeout)

    def _request(self, url: str, method: str, path: str, body: bytes | None = None, timeout: float = 60.0):
        connection = self._connection(url, timeout)
        try:
            connection.request(method, path, body, {"Authorization": self.token})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def full_weights(model) -> list[tuple[str, torch.Tensor]]:
    """Every parameter whole, by its name in the saved model; a collective of all ranks when they are sharded."""
    found = []
    for name, parameter in model.named_parameters():
        tensor = parameter.full_tensor().cpu() if hasattr(parameter, "full_tensor") else parameter
        found.append((name.removeprefix("module."), tensor))
    return found
