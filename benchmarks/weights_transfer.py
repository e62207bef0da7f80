"""python -m benchmarks.weights_transfer [megabytes]: MB/s at which a policy reaches a rollout server on this machine.

The server is started as by the launcher, on a socket file and over TCP; its engine is transformers on the CPU, whose
copy into the model is part of the time. The peer is the plainest way there is: one POST of a safetensors stream to
Python's http.server over TCP, without proofs, bounds or limits, copied into the same model. All are sent in turns; the
ratio is that of the medians to the peer's.
"""

import contextlib
import http.client
import http.server
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scalpel.inference import EngineSettings, open_engine
from scalpel.inference.meeting import ServerOrder
from scalpel.inference.remote import Servers, full_weights
from scalpel.launch.crew import Crew
from scalpel.launch.servers import RolloutServers
from scalpel.weights import OF_SAFETENSORS, SAFETENSORS
from tests import tiny
from tests.test_server import OverTCP

ROUNDS = 7
PEER = "peer"


def model_of(megabytes: int, folder: Path) -> Path:
    """A directory with an Olmo2 of about that size in float32."""
    base = tiny.make_tiny_base(folder)
    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size, config.num_attention_heads = 1024, 4096, 8
    config.num_key_value_heads, config.layer_types = 8, None
    config.num_hidden_layers = max(1, round(megabytes / 67))
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    return base


# ---------------------------------------------------------------- the peer


def serve(base: Path) -> None:
    """The peer's server: says its port, then takes weights until its input closes."""
    engine = open_engine("transformers", base, EngineSettings())

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version, rbufsize = "HTTP/1.1", 1 << 20

        def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, entry in json.loads(self.rfile.read(int.from_bytes(self.rfile.read(8), "little"))).items():
                start, end = entry["data_offsets"]
                buffer, done = bytearray(end - start), 0
                while done < len(buffer):
                    done += self.rfile.readinto(memoryview(buffer)[done : done + (1 << 24)])
                yield name, torch.frombuffer(buffer, dtype=OF_SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])

        def do_POST(self) -> None:
            engine.load_tensors(self.tensors())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def post(port: int, weights: list[tuple[str, torch.Tensor]]) -> None:
    """The peer's client."""
    header, offset = {}, 0
    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        where = [offset, offset + size]
        header[name] = {"dtype": SAFETENSORS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": where}
        offset += size
    text = json.dumps(header).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest("POST", "/weights")
    connection.putheader("Content-Length", str(8 + len(text) + offset))
    connection.endheaders(struct.pack("<Q", len(text)) + text)
    for _, tensor in weights:
        connection.send(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    assert connection.getresponse().status == 200
    connection.close()


@contextlib.contextmanager
def peer(base: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.weights_transfer", PEER, str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


# ---------------------------------------------------------------- what is timed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        base = model_of(int(sys.argv[1]) if len(sys.argv) > 1 else 800, Path(folder))
        weights = full_weights(AutoModelForCausalLM.from_pretrained(base))
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in weights)
        order = ServerOrder(
            kind="transformers", model=str(base), engine=EngineSettings(), completions=1, max_tokens=1
        )  # fmt: skip
        ways: dict[str, Callable[[int], None]] = {}
        for name, kind in {"socket file": RolloutServers, "TCP": OverTCP}.items():
            client = Servers(stack.enter_context(kind(stack.enter_context(Crew()), order, [(None, None)])).meeting, 120)
            client.wait()
            ways[name] = lambda version, client=client: client._send(0, weights, version)
        port = stack.enter_context(peer(base))
        ways["one plain POST (peer)"] = lambda _: post(port, weights)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for version in range(ROUNDS + 1):
            for name, send in ways.items():
                start = time.perf_counter()
                send(version)
                if version:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        for name, median in medians.items():
            rates = " ".join(f"{size / s / 1e6:.0f}" for s in seconds[name])
            ratio = medians["one plain POST (peer)"] / median
            print(f"{name}: {size / 1e6:.0f} MB at {size / median / 1e6:.0f} MB/s, {ratio:.2f} x the peer ({rates})")


if __name__ == "__main__":
    serve(Path(sys.argv[2])) if sys.argv[1:2] == [PEER] else main()
