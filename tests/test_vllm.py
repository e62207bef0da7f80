"""The rollout server with vLLM, for real where it is installed; its CPU build will do."""

import contextlib
import signal
import time
from pathlib import Path

import pytest
import torch

from scalpel.config import RolloutServer
from scalpel.launch import server
from scalpel.launch.crew import Crew
from scalpel.launch.rollouts import TOKEN, Rollouts, full_weights
from scalpel.launch.supervise import free_port
from tests import tiny

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: it is in envs/gpu.lock only", exc_type=ImportError)
pytestmark = pytest.mark.slow

SERVER = {"gpus": 0, "start_seconds": 300, "memory_fraction": 0.1}
GREEDY = {"max_tokens": 24, "temperature": 0.0, "top_p": 1.0}
SAMPLED = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.95}
# The last two are longer than a block of vLLM's prefix cache, and begin alike.
PROMPTS = [[0, 5, 6, 7], [0, *range(30, 36)], [0, *range(20, 320)], [0, *range(20, 300), 9, 8, 7]]
SEEDS = [[2**62, 5, 6], [7], [2**63 - 1, 8], [9, 10]]
END = 0


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """As tiny_base, with heads of 32: vLLM's CPU attention has none of 16."""
    from scalpel.toy.model import train_base
    from scalpel.toy.world import write_world

    directory = tmp_path_factory.mktemp("tiny")
    write_world(tiny.WORLD, directory / "world")
    train_base(tiny.MODEL.model_copy(update={"hidden_size": 64}), directory / "world", directory, threads=1)
    return directory / "model"


@pytest.fixture(scope="module")
def policies(base) -> list[list[tuple[str, torch.Tensor]]]:
    """The base's weights and others, in the order in which a trainer sends them."""
    from transformers import AutoModelForCausalLM

    weights = full_weights(AutoModelForCausalLM.from_pretrained(base, dtype="float32", local_files_only=True))
    noise = torch.Generator().manual_seed(0)
    return [weights, [(name, w + 0.1 * torch.randn(w.shape, generator=noise)) for name, w in weights]]


@pytest.fixture(scope="module")
def start(base, tmp_path_factory):
    """Start a server as the launcher does: start(engine, module) gives its client and its process."""
    cache = str(tmp_path_factory.mktemp("vllm"))
    with Crew() as crew:

        def start(engine: str, module: str):
            url = f"http://127.0.0.1:{free_port()}"
            settings = RolloutServer(**SERVER, engine=engine)
            environment = {TOKEN: "token", "VLLM_CACHE_ROOT": cache}
            crew.start(url, module, [str(base), settings.model_dump_json(), url], environment)
            return Rollouts([url], "token", settings.start_seconds), crew.children[url].process

        yield start


@pytest.fixture(scope="module")
def reference(start) -> Rollouts:
    return start("transformers", "scalpel.launch.server")[0]


@pytest.fixture(scope="module")
def float32(start) -> Rollouts:
    """vLLM in float32, by the last lines of this file: of itself it makes bfloat16 of a float32 model."""
    return start("vllm", "tests.test_vllm")[0]


def test_greedy_is_as_by_transformers_before_and_after_new_weights(float32, reference, policies):
    """New weights that left a part of the old ones, or the prefix cache, would be seen."""
    written = []
    for version, policy in enumerate([0, 1, 0]):
        found = float32.complete(PROMPTS, SEEDS, policies[policy], version, GREEDY)
        assert found == float32.complete(PROMPTS, SEEDS, [], version, GREEDY)  # from the prefix cache
        assert found == reference.complete(PROMPTS, SEEDS, policies[policy], version, GREEDY)
        written.append(found)
    assert written[0] == written[2]
    assert all(a != b for a, b in zip(written[0][1:], written[1][1:], strict=True))  # the first ends at once


def test_seeds_alone_decide_what_is_sampled(float32, policies):
    together = float32.complete(PROMPTS, SEEDS, policies[1], 10, SAMPLED)
    for prompt, seeds, found in zip(PROMPTS, SEEDS, together, strict=True):
        assert [float32.complete([prompt], [[seed]], [], 10, SAMPLED)[0][0] for seed in seeds] == found
    assert float32.complete(PROMPTS[::-1], [s[::-1] for s in SEEDS[::-1]], [], 10, SAMPLED) == [
        found[::-1] for found in together[::-1]
    ]
    others = float32.complete(PROMPTS, [[seed - 1 for seed in seeds] for seeds in SEEDS], [], 10, SAMPLED)
    for mine, theirs in zip(together, others, strict=True):
        assert all(a != b for a, b in zip(mine, theirs, strict=True))


def test_lengths_and_the_end(float32, policies):
    seeds = [list(range(100, 112)), [1], [2, 3], [4]]
    found = float32.complete(PROMPTS, seeds, policies[0], 20, SAMPLED)
    assert [len(mine) for mine in found] == [len(mine) for mine in seeds]
    completions = [ids for mine in found for ids in mine]
    assert all(0 < len(ids) <= SAMPLED["max_tokens"] and END not in ids[:-1] for ids in completions)
    assert all(len(ids) == SAMPLED["max_tokens"] or ids[-1] == END for ids in completions)
    assert {ids[-1] == END for ids in completions} == {True, False}
    assert all(len(ids) == 1 for ids in float32.complete(PROMPTS[:1], [[1, 2]], [], 20, SAMPLED | {"max_tokens": 1})[0])


def test_as_the_launcher_starts_it_until_its_input_closes(start, policies):
    """SIGTERM does not end it; the end of its standard input does, with all that it started."""
    rollouts, process = start("vllm", "scalpel.launch.server")
    first = rollouts.complete(PROMPTS, SEEDS, policies[0], 0, GREEDY)
    process.send_signal(signal.SIGTERM)
    assert rollouts.complete(PROMPTS, SEEDS, policies[1], 1, GREEDY) != first
    assert rollouts.complete(PROMPTS, SEEDS, policies[0], 2, GREEDY) == first
    assert process.poll() is None and session(process.pid)
    process.stdin.close()
    assert process.wait(10) == 0
    time.sleep(0.5)
    assert not session(process.pid)


def session(leader: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, leads = path.read_text().rpartition(")")[2].split()[:4]
            if int(leads) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def test_weights_that_end_early_are_not_overlooked():
    """A server ends at any error but a client's going away; with vLLM's layers half loaded it must end."""

    class Engine:
        def collective_rpc(self, method, kwargs):
            list(kwargs["weights_iterator"])

    def tensors():
        raise ConnectionError
        yield

    engine = server.VLLM.__new__(server.VLLM)
    engine.llm = Engine()
    with pytest.raises(RuntimeError, match="ended early"):
        engine.load(tensors())


if __name__ == "__main__":
    engine = vllm.LLM
    vllm.LLM = lambda **settings: engine(**settings | {"dtype": "float32"})
    server.main()
