"""The rollout server: completions of the current policy, by vLLM or by transformers (scalpel/launch/rollouts.py).

Started by the launcher as ``python -m scalpel.launch.server <model> <settings as JSON> <url>``; it ends when its
standard input closes. SIGTERM does not end it: SLURM sends that to every process of a job, and the ranks, which
save before they stop, may still need their completions.
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

from scalpel.config.training import RolloutServer
from scalpel.launch.crew import settle_child, wait_for_end_of_input
from scalpel.launch.rollouts import OTHER_WEIGHTS, TOKEN
from scalpel.weights import OF_SAFETENSORS

CHUNK = 1 << 24  # bytes of a tensor read at once


class Transformers:
    """Completions by transformers with our own sampling; for machines without a GPU, and as vLLM's reference."""

    def __init__(self, base: Path, settings: RolloutServer):
        import torch
        from transformers import AutoModelForCausalLM

        from scalpel.chat import load_tokenizer

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(
            base, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        self.model.to(self.device).eval()
        self.tokenizer = load_tokenizer(base)
        self.there = self.model.state_dict()

    def load(self, tensors) -> None:
        for name, tensor in tensors:
            self.there[name].copy_(tensor)

    def complete(self, prompts, seeds, max_tokens: int, temperature: float, top_p: float) -> list[list[list[int]]]:
        import numpy as np

        from scalpel.sampling import complete

        draws = [np.stack([np.random.default_rng(s).random(max_tokens) for s in mine]) for mine in seeds]
        found = complete(self.model, self.tokenizer, prompts, draws, temperature, top_p)
        end = self.tokenizer.eos_token_id
        return [[ids if len(ids) == max_tokens else [*ids, end] for ids in mine] for mine in found]


class VLLM:
    """Completions by a vLLM engine in this process, on one GPU or, with vLLM's CPU build, on none."""

    def __init__(self, base: Path, settings: RolloutServer):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the weights are loaded into this process's model
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        import torch
        from vllm import LLM

        self.llm = LLM(
            model=str(base),
            dtype="auto",
            gpu_memory_utilization=settings.memory_fraction,
            enforce_eager=not torch.cuda.is_available(),
            enable_prefix_caching=True,
            trust_remote_code=False,
            seed=0,
        )

    def load(self, tensors) -> None:
        try:
            same = ((name, tensor.to(self.llm.model_config.dtype)) for name, tensor in tensors)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": same})
        except ConnectionError as error:
            raise RuntimeError("the weights ended early: vLLM cannot begin anew with its layers half loaded") from error
        if not self.llm.reset_prefix_cache():  # it was filled by other weights
            raise RuntimeError("vLLM keeps a prefix cache of other weights")

    def complete(self, prompts, seeds, max_tokens: int, temperature: float, top_p: float) -> list[list[list[int]]]:
        from vllm import SamplingParams

        asked = [(ids, seed) for ids, mine in zip(prompts, seeds, strict=True) for seed in mine]
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in asked],
            [
                SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, detokenize=False)
                for _, seed in asked
            ],
            use_tqdm=False,
        )
        completions = iter([list(output.outputs[0].token_ids) for output in outputs])
        return [[next(completions) for _ in mine] for mine in seeds]


ENGINES = {"vllm": VLLM, "transformers": Transformers}


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
        Handler.engine.load(self.tensors())
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
        return self.answer(200, {"completions": Handler.engine.complete(**asked)})

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
    settle_child()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    base, settings, url = Path(sys.argv[1]), RolloutServer.model_validate_json(sys.argv[2]), urlsplit(sys.argv[3])
    Handler.token = os.environ[TOKEN]
    Handler.engine = Handler.thread.submit(ENGINES[settings.engine], base, settings).result()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # vLLM sets one of its own
    server = Server(("127.0.0.1" if url.hostname == "127.0.0.1" else "", url.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{settings.engine} answers at {sys.argv[3]}", flush=True)
    wait_for_end_of_input()
    os._exit(0)  # at once, whatever the engine's threads are at


if __name__ == "__main__":
    main()
