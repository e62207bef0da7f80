"""The rollout server: completions of the current policy by an engine of its own (remote.py asks and says what).

Started by the launcher as ``python -m scalpel.inference.server <ServerOrder as JSON> <where>``; it reads the run's
token from its standard input and ends when that closes. where: ``fd:<n>``, a socket that the launcher has bound, or
the address of this node, on which the server takes a free port and says so. SIGTERM does not end it: SLURM sends that
to every process of a job, and the ranks, which save before they stop, may still need their completions.

Whatever is asked, the answer to a wrong request is a status of 4xx and a sentence, and the server stays. Only an engine
that fails at what was rightly asked ends it: the launcher starts another.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from scalpel.errors import UserError
from scalpel.inference import open_engine
from scalpel.inference.meeting import LISTENS, NONCE, ServerOrder, listen_on, nonce, place_of, proof, same
from scalpel.inference.remote import OTHER_WEIGHTS
from scalpel.inference.requests import Completion, Request
from scalpel.launch.crew import prepare_child, wait_for_end_of_input
from scalpel.weights import OF_SAFETENSORS, check_shapes

CHUNK = 1 << 24  # bytes of a tensor read at once
UNPROVED, PROVED = 64, 16  # connections at once, before and after the client's proof
PROOF_SECONDS = 10.0  # that a client may take to prove itself
SILENT_SECONDS = 60.0  # that it may then leave the server waiting for its next byte
HEAD_BYTES = 1 << 20  # that a body may have beside its token ids or tensors' names
BEYOND = 4  # times the model's positions that a prompt may have: transformers reads beyond them, vLLM refuses by itself

# ---------------------------------------------------------------- what may be asked

Token = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[int, Field(ge=0, lt=2**64)]
Few = Annotated[int, Field(ge=1, lt=2**31)]
Prompt = Annotated[list[Token], Field(min_length=1), FailFast()]
Seed = Annotated[list[Number], Field(min_length=1, max_length=8)]


class Wanted(BaseModel):
    """Fields of their own type and within bounds, no others, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    version: Annotated[int, Field(ge=0, le=10**9)]


class CompletionsWanted(Wanted):
    requests: Annotated[list[tuple[Prompt, Seed, Few, Few]], Field(min_length=1), FailFast()]  # as Request
    temperature: Annotated[float, Field(ge=0, le=10)]
    top_p: Annotated[float, Field(ge=0, le=1)]
    logprobs: bool
    top_k: Annotated[int, Field(gt=0, le=10**6)] | None = None


class Announced(NamedTuple):
    name: Annotated[str, Field(max_length=1000)]
    dtype: str
    shape: Annotated[list[Number], Field(max_length=8)]


class WeightsWanted(Wanted):
    tensors: Annotated[list[Announced], Field(max_length=10**5), FailFast()]


class Refused(Exception):
    """The request is wrong, or cannot be met: its status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


# ---------------------------------------------------------------- the policy


class Policy:
    """The engine, and which step's weights it holds. One thing at a time is asked of it."""

    version: int | None

    def __init__(self, order: ServerOrder):
        self.order, self.version = order, None
        # One thread for all: vLLM launches its GPU work on streams of the thread that made it.
        self.thread = ThreadPoolExecutor(1)
        kind = cast("Literal['transformers', 'vllm']", order.kind)
        self.engine = self.thread.submit(open_engine, kind, Path(order.model), order.engine).result()
        self.vocabulary = self.engine.model.get_input_embeddings().num_embeddings
        self.positions = getattr(self.engine.model.config, "max_position_embeddings", None) or 10**6
        self.most_bytes = HEAD_BYTES + order.completions * BEYOND * 12 * self.positions  # of prompts, as JSON

    def announced(self, wanted: WeightsWanted) -> list[tuple[str, torch.dtype, list[int]]]:
        """Names, dtypes and shapes that will follow; Refused when they are not the model's."""
        found = [(t.name, OF_SAFETENSORS.get(t.dtype), t.shape) for t in wanted.tensors]
        shapes = {name: shape for name, _, shape in found}
        if len(shapes) < len(found) or any(dtype is None for _, dtype, _ in found):
            raise Refused(400, f"tensors: each name once, and of dtypes {', '.join(OF_SAFETENSORS)}")
        try:
            check_shapes(shapes, self.engine.model)
        except UserError as error:
            raise Refused(422, str(error)) from None
        return found

    def load(self, version: int, announced: list, read: Callable[[memoryview], None]) -> None:
        """Take the weights that `read` fills buffers with; Refused when it ends early: then no weights are held."""
        failed: list[OSError] = []

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for name, dtype, shape in announced:
                buffer = bytearray(math.prod(shape) * dtype.itemsize)
                if not failed:
                    try:
                        read(memoryview(buffer))
                    except OSError as error:  # the rest is zeros: vLLM cannot be left with its layers half loaded
                        failed.append(error)
                yield name, torch.frombuffer(buffer, dtype=dtype).reshape(shape)

        def load() -> None:
            self.version = None
            self.engine.load_tensors(tensors())
            self.version = None if failed else version

        self._work(load)
        if failed:
            raise failed[0]

    def complete(self, wanted: CompletionsWanted) -> list:
        """Completions of all requests; Refused when they exceed the server's order, the model, or its memory."""
        requests = [Request(prompt, tuple(seed), samples, most) for prompt, seed, samples, most in wanted.requests]
        total, most = sum(r.samples for r in requests), max(r.max_tokens for r in requests)
        if total > self.order.completions or most > self.order.max_tokens:
            raise Refused(
                400,
                f"requests: {total} completions of up to {most} tokens; this server gives {self.order.completions} of "
                f"up to {self.order.max_tokens}",
            )
        if max(max(r.prompt) for r in requests) >= self.vocabulary:
            raise Refused(400, f"requests: the model has tokens 0 to {self.vocabulary - 1}")
        if max(len(r.prompt) for r in requests) > BEYOND * self.positions:
            raise Refused(
                400, f"requests: a prompt is longer than {BEYOND} times the model's {self.positions} positions"
            )

        def complete() -> list[list[Completion]]:
            if wanted.version != self.version:
                raise Refused(OTHER_WEIGHTS, f"the weights held are those of step {self.version}")
            return self.engine.complete(requests, wanted.temperature, wanted.top_p, wanted.logprobs, wanted.top_k)

        return self._work(complete)

    def _work(self, work: Callable[[], Any]) -> Any:
        try:
            return self.thread.submit(work).result()
        except Refused:
            raise
        except UserError as error:
            raise Refused(422, str(error)) from None
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # an engine that failed is not asked again


# ---------------------------------------------------------------- connections


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection: first the proofs, then requests."""

    protocol_version = "HTTP/1.1"
    rbufsize = 1 << 20
    timeout = PROOF_SECONDS  # of a single read or write; the server counts the seconds until the proof
    expected = ""  # the client's proof
    server: Server
    announced: tuple[int, list] | None = None  # the version and tensors that its next PUT brings

    def do_GET(self) -> None:
        self.respond({"/challenge": self.challenge, "/health": self.health})

    def do_POST(self) -> None:
        self.respond({"/weights": self.weights, "/complete": self.complete})

    def do_PUT(self) -> None:
        self.respond({"/weights": self.bytes_of_weights})

    def respond(self, routes: dict[str, Callable[[], dict]]) -> None:
        try:
            self.left = self.length()
            path = self.path.partition("?")[0]
            if path != "/challenge" and not self.proved():
                raise Refused(403, "this connection is not proved")
            if path not in routes:
                raise Refused(404, "unknown path")
            self.answer(200, routes[path]())
        except Refused as refused:
            self.close_connection = self.close_connection or self.left != 0
            self.answer(refused.status, {"error": str(refused)[:300]})
        except OSError:  # the client went away, or is too slow
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self.close_connection = True
            self.answer(500, {"error": "the server has an error; see its lines"})

    def challenge(self) -> dict:
        query = self.path.partition("?")[2]
        theirs = query.removeprefix("nonce=")
        if query == theirs or not NONCE.fullmatch(theirs) or self.left:
            raise Refused(400, "GET /challenge?nonce=<64 hexadecimal digits>")
        mine = nonce()
        both = (theirs, mine, place_of(self.connection.getsockname()))
        self.expected = proof(self.server.token, "client", *both)
        return {"nonce": mine, "proof": proof(self.server.token, "server", *both)}

    def proved(self) -> bool:
        given = self.headers.get_all("Authorization", [])
        if not self.expected or len(given) != 1 or not same(str(given[0]), self.expected):
            return False
        self.connection.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # as settimeout, without a poll before each read
            self.connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(SILENT_SECONDS), 0))
        if not self.server.admit(self.connection):
            raise Refused(429, f"{PROVED} clients are connected")
        return True

    def health(self) -> dict:
        return {"version": self.server.policy.version}

    def complete(self) -> dict:
        wanted: CompletionsWanted = parsed(CompletionsWanted, self.body(self.server.policy.most_bytes))
        return {"completions": self.server.policy.complete(wanted)}

    def weights(self) -> dict:
        wanted: WeightsWanted = parsed(WeightsWanted, self.body(16 * HEAD_BYTES))
        self.announced = wanted.version, self.server.policy.announced(wanted)
        return {}

    def bytes_of_weights(self) -> dict:
        if self.announced is None:
            raise Refused(409, "POST /weights comes first")
        (version, announced), self.announced = self.announced, None
        size = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in announced)
        if self.left != size:
            raise Refused(400, f"Content-Length: the tensors announced have {size} bytes")
        self.server.policy.load(version, announced, self.fill)
        return {"version": version}

    # ------------------------------------------------------------ bytes

    def length(self) -> int:
        """Bytes of the body that its head names."""
        self.left = -1
        given = self.headers.get_all("Content-Length", ["0"])
        if "Transfer-Encoding" in self.headers or len(given) != 1 or not re.fullmatch(r"[0-9]{1,15}", given[0]):
            raise Refused(411, "Content-Length: one number")
        return int(given[0])

    def body(self, most: int) -> bytearray:
        if self.left > most:
            raise Refused(413, f"Content-Length: at most {most} bytes")
        content = bytearray(self.left)
        self.fill(memoryview(content))
        return content

    def fill(self, view: memoryview) -> None:
        """Read so many bytes of the body; ConnectionError or TimeoutError when they do not come."""
        done = 0
        while done < len(view):
            got = self.rfile.readinto(view[done : done + CHUNK])
            if not got:
                raise ConnectionError("the body ended early")
            done += got
        self.left -= done

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"  # which has a status
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """http.server's own refusals of what is no request it knows."""
        self.close_connection = True
        self.answer({501: 405, 505: 400}.get(code, code), {"error": str(message)[:300]})

    def log_message(self, *_: Any) -> None:
        pass


def parsed(model: type[Wanted], content: bytearray) -> Any:
    try:
        return model.model_validate_json(bytes(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refused(400, f"{where}: {first['msg']}") from None


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection, and so many of them: the oldest that is not proved gives way to a new one."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, token: str, policy: Policy):
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.token, self.policy = listening, token, policy
        self.unproved: dict[socket.socket, float] = {}  # until when each may take
        self.admitted: set[socket.socket] = set()
        self.lock = threading.Lock()

    def process_request(self, request: socket.socket, client_address: Any) -> None:  # type: ignore[override]  # no UDP
        with self.lock:
            if len(self.unproved) >= UNPROVED:
                self.cut(next(iter(self.unproved)))
            self.unproved[request] = time.monotonic() + PROOF_SECONDS
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        now = time.monotonic()
        with self.lock:
            for request in [request for request, end in self.unproved.items() if end < now]:
                self.cut(request)

    def cut(self, request: socket.socket) -> None:
        del self.unproved[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def admit(self, request: socket.socket) -> bool:
        """Whether a client that has proved itself is served."""
        with self.lock:
            if request in self.admitted:
                return True
            if len(self.admitted) >= PROVED or request not in self.unproved:
                return False
            del self.unproved[request]
            self.admitted.add(request)
            return True

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]  # no UDP
        with self.lock:
            self.unproved.pop(request, None)
            self.admitted.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away
            super().handle_error(request, client_address)


def main() -> None:
    prepare_child()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    order, where = ServerOrder.model_validate_json(sys.argv[1]), sys.argv[2]
    token = sys.stdin.buffer.readline().decode().strip()
    if not token:
        sys.exit("the launcher ended before it told its server the token")
    if where.startswith("fd:"):
        listening = socket.socket(fileno=int(where.removeprefix("fd:")))
        listening.set_inheritable(False)
    else:
        listening = listen_on(where)
        print(f"{LISTENS} {listening.getsockname()[1]}", flush=True)
    policy = Policy(order)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # vLLM sets one of its own
    server = Server(listening, token, policy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{order.kind} answers", flush=True)
    wait_for_end_of_input()
    os._exit(0)  # at once, whatever the engine's threads are at


if __name__ == "__main__":
    main()
