"""vLLM for real where it is installed; its CPU build will do.

vLLM changes transformers' classes in its process: what transformers answers is asked for before it is opened.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from scalpel.config.evaluation import EvaluationRecipe
from scalpel.errors import UserError
from scalpel.evaluation.questions import prepare
from scalpel.inference import EngineSettings, open_engine
from scalpel.inference.meeting import ServerOrder
from scalpel.inference.remote import Servers
from scalpel.inference.requests import Completion, Request
from scalpel.launch.crew import Crew
from scalpel.launch.servers import RolloutServers
from tests import tiny

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: it is in envs/gpu.lock only", exc_type=ImportError)
pytestmark = pytest.mark.slow

SETTINGS = EngineSettings(memory_fraction=0.1)
# The last two are longer than a block of vLLM's prefix cache, and begin alike.
PROMPTS = [[0, 5, 6, 7], [0, *range(30, 36)], [0, *range(20, 320)], [0, *range(20, 300), 9, 8, 7]]
ASKED = [Request(prompt, (2**40, number), 3, 24) for number, prompt in enumerate(PROMPTS)]
END = 0
NATS = 1e-4  # by which log-likelihoods may differ from transformers' in float32; a few 1e-6 when measured


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[Path]:
    """As tiny_base, with heads of 32 (vLLM's CPU attention has none of 16), and its weights shaken."""
    folder = tmp_path_factory.mktemp("tiny")
    base = tiny.make_tiny_base(folder, tiny.MODEL.model_copy(update={"hidden_size": 64}))
    other = folder / "other"
    other.mkdir()
    for path in base.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    noise = torch.Generator().manual_seed(0)
    weights = {
        name: w + 0.1 * torch.randn(w.shape, generator=noise)
        for name, w in load_file(base / "model.safetensors").items()
    }
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return [base, other]


@pytest.fixture(scope="module")
def expected(bases) -> list[tuple[list, list, list]]:
    """(greedy completions, pairs, their log-likelihoods) of both models by transformers."""
    found = []
    for base in bases:
        engine = open_engine("transformers", base, EngineSettings())
        greedy = engine.complete([request._replace(samples=1) for request in ASKED], 0.0, 1.0, logprobs=True)
        pairs = [(prompt, end) for prompt in PROMPTS for end in ([5], [6], [7, 8], [7, 9], [9, 9, 9, 5, 5])]
        pairs += [(prompt, one.ids[:4] or [END]) for prompt, [one] in zip(PROMPTS, greedy, strict=True)]
        # A context of whole blocks, and one whose continuation begins at a block's beginning.
        pairs += [(PROMPTS[2][:n], PROMPTS[2][n : n + 3]) for n in (127, 128, 129)]
        pairs += [(PROMPTS[2][:128], [7]), (PROMPTS[2][:128], PROMPTS[2][128:129])]
        found.append((greedy, pairs, engine.loglikelihoods(pairs)))
    return found


@pytest.fixture(scope="module")
def lacking(bases, tmp_path_factory) -> Path:
    """The base without one of its tensors."""
    directory = tmp_path_factory.mktemp("lacking")
    for path in bases[0].iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tensors = load_file(bases[0] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_model_that_lacks_a_tensor_is_refused(lacking):
    with pytest.raises(UserError, match="up_proj"):
        open_engine("vllm", lacking, SETTINGS)


@pytest.fixture(scope="module")
def engine(bases, expected):
    return open_engine("vllm", bases[0], SETTINGS)


def same(engine, expected) -> None:
    greedy, pairs, scores = expected
    for _ in range(2):  # the second time from the prefix cache
        found = engine.complete([request._replace(samples=1) for request in ASKED], 0.0, 1.0, logprobs=True)
        for [mine], [theirs] in zip(found, greedy, strict=True):
            assert mine[:2] == theirs[:2] and mine.logprobs == pytest.approx(theirs.logprobs, abs=NATS)
        for mine, theirs in zip(engine.loglikelihoods(pairs), scores, strict=True):
            assert mine[0] == pytest.approx(theirs[0], abs=NATS) and mine[1] == theirs[1]


def test_as_by_transformers_before_and_after_new_weights(engine, bases, expected):
    """New weights that left a part of the old ones, or the prefix cache, would be seen. float32 stays float32."""
    assert expected[0][0][1:] != expected[1][0][1:]
    same(engine, expected[0])
    engine.load(bases[1])
    same(engine, expected[1])
    engine.load_tensors(load_file(bases[0] / "model.safetensors").items())
    same(engine, expected[0])


def test_seeds_alone_decide_what_is_sampled(engine):
    together = engine.complete(ASKED, 1.0, 0.95)
    assert len({tuple(one.ids) for mine in together for one in mine}) > 8
    assert [engine.complete([request], 1.0, 0.95)[0] for request in ASKED] == together
    assert engine.complete(ASKED[::-1], 1.0, 0.95) == together[::-1]
    fewer = engine.complete([request._replace(samples=2) for request in ASKED], 1.0, 0.95)
    assert fewer == [mine[:2] for mine in together]
    others = engine.complete([request._replace(seed=(5,)) for request in ASKED], 1.0, 0.95)
    assert all(a != b for a, b in zip(together, others, strict=True))


def test_completions_end_with_their_token_or_for_want_of_room(engine):
    asked = [request._replace(samples=8, max_tokens=most) for request, most in zip(ASKED, (1, 9, 24, 24), strict=True)]
    ended = set()
    for request, mine in zip(asked, engine.complete(asked, 1.0, 0.95, logprobs=True), strict=True):
        for one in mine:
            ended.add(one.end)
            assert END not in one.ids and len(one.logprobs) == len(one.ids) + (one.end is not None)
            assert len(one.ids) == request.max_tokens if one.end is None else len(one.ids) < request.max_tokens
    assert ended == {END, None}


def test_logprobs_are_those_of_the_distribution_sampled_from(engine):
    """At temperature 1 without a nucleus they are the model's own, which loglikelihoods gives."""
    for request, mine in zip(ASKED, engine.complete(ASKED, 1.0, 1.0, logprobs=True), strict=True):
        for one in mine:
            written = one.ids + ([one.end] if one.end is not None else [])
            [(value, _)] = engine.loglikelihoods([(request.prompt, written)])
            assert sum(one.logprobs) == pytest.approx(value, abs=NATS)
    [[narrow]] = engine.complete([ASKED[1]._replace(samples=1)], 1.0, 1e-6, logprobs=True)
    assert narrow.logprobs == pytest.approx([0.0] * len(narrow.logprobs))


def test_other_checkpoints_and_long_prompts_are_refused(engine, lacking, expected):
    with pytest.raises(UserError, match="up_proj"):
        engine.load(lacking)
    same(engine, expected[0])
    with pytest.raises(UserError, match="1024 positions"):
        engine.complete([ASKED[0]._replace(prompt=[5] * 1024)], 0.0, 1.0)
    [[cut]] = engine.complete([Request([5] * 1020, (1,), 1, 50)], 1.0, 1.0)
    assert len(cut.ids) <= 4 and cut.end in (None, END)


def test_weights_that_end_early_are_not_overlooked(engine, bases, monkeypatch):
    """A server ends at any error but a client's going away; with vLLM's layers half loaded it must end."""

    def tensors():
        yield from list(load_file(bases[0] / "model.safetensors").items())[:3]
        raise ConnectionError

    monkeypatch.setattr(engine.llm, "collective_rpc", lambda method, kwargs: list(kwargs["weights_iterator"]))
    with pytest.raises(RuntimeError, match="ended early"):
        engine.load_tensors(tensors())


# ---------------------------------------------------------------- evaluation

EVALUATE = """
import sys
from pathlib import Path
from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings
from scalpel.evaluation import evaluate

recipe, models, sets, out = EvaluationRecipe.model_validate_json(sys.argv[1]), *sys.argv[2:]
models = [(step, Path(path)) for step, path in enumerate(models.split(","))]
sets = {name: Path(sets) / (task.questions or name) for name, task in recipe.tasks.items()}
evaluate(models, sets, recipe, EvaluationSettings(memory_fraction=0.1), Path(out))
"""


def test_evaluation_is_as_by_transformers(bases, tmp_path):
    """All harnesses in a process of their own, two checkpoints: the same greedy answers and choices."""
    sets = tiny.make_tiny_sets(bases[0].parents[1] / "world" / "evaluation", tmp_path / "sets")
    task = {"output_type": "generate_until", "test_split": "test", "doc_to_target": "{{problem}}", "task": "echo"}
    task |= {"doc_to_text": "{{problem}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12}}
    echo = tmp_path / "sets" / "echo"
    echo.mkdir()
    recipe = {"format": "lm_eval", "task": "echo", "yaml": json.dumps(task), "code": {}}
    prepare(recipe, {"test": sets["math_500"] / "questions.parquet"}, echo)
    tasks = {"math_500": {"samples": 2}, "gsm8k": {"shots": 1}, "ifeval": {}, "mmlu": {"shots": 2}, "mmlu_pro": {}}
    tasks |= {"cloze": {"questions": "mmlu", "formulation": "cloze"}, "echo": {}}
    found = {}
    for kind in ("transformers", "vllm"):
        out = tmp_path / kind
        out.mkdir()
        asked = {"temperature": 0.0, "inference": kind}
        asked |= {"tasks": {name: {"max_new_tokens": 16} | options for name, options in tasks.items()}}
        recipe = EvaluationRecipe.model_validate(asked).model_dump_json()
        command = [sys.executable, "-c", EVALUATE, recipe, ",".join(map(str, bases)), str(tmp_path / "sets"), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found[kind] = pq.read_table(out / "samples.parquet").to_pandas(), pq.read_table(out / "scores.parquet")
    ours, theirs = found["transformers"], found["vllm"]
    columns = [name for name in ours[0].columns if name != "choice_logprobs"]
    assert set(ours[0].task) == set(tasks) and ours[0][columns].equals(theirs[0][columns])
    assert ours[1].equals(theirs[1])
    pairs = zip(ours[0].choice_logprobs.dropna(), theirs[0].choice_logprobs.dropna(), strict=True)
    assert max(abs(mine - other).max() for mine, other in pairs) < NATS


# ---------------------------------------------------------------- as a rollout server


def test_as_the_launcher_starts_it_until_its_input_closes(bases, expected, tmp_path, monkeypatch):
    """SIGTERM does not end it, nor does a wrong request; the end of its standard input does, with all it started."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    weights = [list(load_file(base / "model.safetensors").items()) for base in bases]
    asked = [request._replace(samples=1) for request in ASKED]
    order = ServerOrder(kind="vllm", model=str(bases[0]), engine=SETTINGS, completions=8, max_tokens=24)
    with Crew() as crew, RolloutServers(crew, order, [(None, None)]) as servers:
        rollouts, process = Servers(servers.meeting, 300.0), crew.children["server"].process
        for version, policy in enumerate([0, 1, 0]):
            found = rollouts.complete(asked, weights[policy], version, 0.0, 1.0)
            assert found == [[Completion(*one[:2]) for one in mine] for mine in expected[policy][0]]
            process.send_signal(signal.SIGTERM)
            for wrong, words in (
                (Request([5], (1,), 1, 10**9), "tokens; this server gives"),
                (Request([10**6], (1,), 1, 1), "the model has tokens"),
                (Request([5] * 3000, (1,), 1, 1), "positions"),
            ):
                with pytest.raises(UserError, match=words):
                    rollouts.complete([wrong], [], version, 0.0, 1.0)
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
