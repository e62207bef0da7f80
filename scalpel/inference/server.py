"""The rollout server: completions of the current policy by an engine of its own (remote.py asks).

Started by the launcher as ``python -m scalpel.inference.server <kind> <model> <EngineSettings as JSON> <url>``; it
ends when its standard input closes. SIGTERM does not end it: SLURM sends that to every process of a job, and the ranks,
which save before they stop, may still need their completions.
"""

from __future__ import annotations

import hmac
import http.server
import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from scalpel.inference import EngineSettings, open_engine
from scalpel.inference.remote import OTHER_WEIGHTS, TOKEN
from scalpel.inference.requests import Request
from scalpel.launch.crew import prepare_child, wait_for_end_of_input
from scalpel.weights import OF_SAFETENSORS

CHUNK = 1 << 24  # bytes of a tensor read at once


class Handler(http.server.BaseHTTPRequestHandler):
    """One request. The class holds what is the server's: `engine`, `version`, `token`, `thread`."""

    protocol_version = "HTTP/1.1"
    rbufsize = 1 << 20
    engine = None
    version: int | None = None  # optimizer steps of the weights held
    token = ""
    thread = ThreadPoolExecutor(1)  # the engine's: vLLM launches its GPU work on streams of the thread that made it

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"version": Handler.version})
        else:
            self.answer(404, {"error": "unknown path"})

    def do_POST(self) -> None:
        if not hmac.compare_digest(self.headers.get("Authorization", ""), Handler.token):
            self.close_connection = True
            return self.answer(403, {"error": "wrong token"})
        where = urlsplit(self.path)
        if where.path == "/weights":
            return Handler.thread.submit(self.weights, int(parse_qs(where.query)["version"][0])).result()
        if where.path == "/complete":
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return Handler.thread.submit(self.complete, asked).result()
        return self.answer(404, {"error": "unknown path"})

    def weights(self, version: int) -> None:
        Handler.version = None
        Handler.engine.load_tensors(self.tensors())
        Handler.version = version
        self.answer(200, {"version": version})

    def tensors(self):
        """Names and tensors of a safetensors stream, each read when it is asked for."""
        import torch

        length = int.from_bytes(self.rfile.read(8), "little")
        for name, entry in json.loads(self.rfile.read(length)).items():
            start, end = entry["data_offsets"]
            buffer = bytearray(end - start)
            view, done = memoryview(buffer), 0
            while done < len(buffer):
                got = self.rfile.readinto(view[done : done + CHUNK])
                if not got:
                    raise ConnectionError("the weights ended early")
                done += got
            yield name, torch.frombuffer(buffer, dtype=OF_SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])

    def complete(self, asked: dict) -> None:
        if asked.pop("version") != Handler.version:
            return self.answer(OTHER_WEIGHTS, {"version": Handler.version})
        requests = [
            Request(prompt, tuple(seed), samples, most) for prompt, seed, samples, most in asked.pop("requests")
        ]
        return self.answer(200, {"completions": Handler.engine.complete(requests, **asked)})

    def log_message(self, *_) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request, client_address) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # a client that went away is no failure of the server's
            super().handle_error(request, client_address)
            os._exit(1)  # an engine that failed is not asked again: the launcher starts another


def main() -> None:
    prepare_child()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kind, base, url = sys.argv[1], Path(sys.argv[2]), urlsplit(sys.argv[4])
    Handler.token = os.environ[TOKEN]
    settings = EngineSettings.model_validate_json(sys.argv[3])
    Handler.engine = Handler.thread.submit(open_engine, kind, base, settings).result()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # vLLM sets one of its own
    server = Server(("127.0.0.1" if url.hostname == "127.0.0.1" else "", url.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{kind} answers at {sys.argv[4]}", flush=True)
    wait_for_end_of_input()
    os._exit(0)  # at once, whatever the engine's threads are at


if __name__ == "__main__":
    main()
