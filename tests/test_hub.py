"""The hub, met on loopback: huggingface_hub as it is, a small server that speaks its protocol, and its faults."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalpel.artifact.files import MANIFEST, read_json
from scalpel.artifact.identity import sha256_file
from scalpel.artifact.step import Step, record_recipe
from scalpel.errors import FINAL
from tests.hub import Hub

ROOT = Path(__file__).resolve().parent.parent
COMMIT, OTHER = "a" * 40, "b" * 40
TOKEN = "hf_" + "SeCrEt" * 6
REPO, ROWS = "someone/their-model", "someone/their-rows"
MAY_PASS = 1  # status of a program whose error may pass


@pytest.fixture
def hub(tiny_base, tmp_path):
    """A model at two commits, with files that no one needs, and a dataset."""
    files = {path.name: path.read_bytes() for path in tiny_base.iterdir()}
    rest = {"pytorch_model.bin": b"pickled", "onnx/model.safetensors": b"another", "README.md": b"# Theirs"}
    pq.write_table(pa.table({"question": ["q"], "answer": ["1"]}), tmp_path / "x.parquet")
    rows = {"test/0.parquet": (tmp_path / "x.parquet").read_bytes(), "more.jsonl": b'{"question": "q"}\n', "a.py": b"1"}
    with Hub() as hub:
        hub.files["model", REPO, COMMIT] = files | rest
        hub.files["model", REPO, OTHER] = files | {"config.json": b"{}"}
        hub.files["dataset", ROWS, COMMIT] = rows
        hub.branches[REPO] = {"main": OTHER, "step-100": COMMIT}
        yield hub


class Fetch:
    """A fetch step in a results directory of its own, made by its stage program."""

    def __init__(self, root: Path, hub: Hub, repo: str = REPO, kind: str = "model", revision: str = COMMIT, **recipe):
        step = Step("fetch", "theirs", 1, {"type": kind, "repo": repo, "revision": revision} | recipe)
        self.root, self.hub, self.directory = root, hub, root / step.directory
        record_recipe(step, root)

    def run(self, **environment) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.fetch", str(self.directory)], cwd=self.root, capture_output=True, text=True,
            env=on_loopback(self.hub, self.root) | environment,
        )  # fmt: skip
        (self.root / "log").open("a").write(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return done.returncode, done.stderr

    def fetched(self) -> None:
        status, said = self.run()
        assert status == 0, said

    def files(self) -> dict[str, str]:
        """Path -> sha256 of what was fetched, as the manifest has it."""
        return {name: entry["sha256"] for name, entry in read_json(self.directory / MANIFEST)["files"].items()
                if name.startswith("files/")}  # fmt: skip


def on_loopback(hub: Hub, root: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return kept | {
        "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "SCALPEL_GITHUB": hub.url,
    }  # fmt: skip


def whole(tiny_base: Path) -> dict[str, str]:
    return {f"files/{path.name}": sha256_file(path) for path in tiny_base.iterdir() if path.suffix != ".md"}


def test_a_model_is_fetched_by_commit_and_nothing_else_of_it(hub, tiny_base, tmp_path):
    fetch = Fetch(tmp_path, hub)
    fetch.fetched()
    found = fetch.files()
    assert found == {name: digest for name, digest in whole(tiny_base).items() if name in found}
    assert {"files/model.safetensors", "files/config.json", "files/tokenizer.json"} <= found.keys()
    assert all(OTHER not in path and "main" not in path for _, path, _ in hub.asked)
    assert not hub.fetched("pytorch_model.bin") and not hub.fetched("onnx/model.safetensors")
    asked = len(hub.asked)
    (fetch.directory / MANIFEST).unlink()  # as Snakemake does before it starts a job again
    fetch.fetched()
    assert len(hub.asked) == asked and fetch.files() == found


def test_of_a_dataset_the_files_asked_for_are_fetched_and_made_parquet(hub, tmp_path):
    fetch = Fetch(tmp_path, hub, ROWS, "dataset", files=["test/*", "*.jsonl"])
    fetch.fetched()
    assert set(fetch.files()) == {"files/test/0.parquet", "files/more.jsonl", "files/more.parquet"}
    other = Fetch(tmp_path, hub, ROWS, "dataset", files=["train/*"])
    assert other.run()[0] == FINAL and "holds no file matching train/*" in other.run()[1]


def test_a_file_of_github_is_the_one_that_is_named(hub, tmp_path):
    """The facts of causal tracing come so: one JSON list at a commit."""
    facts = b'[{"subject": "A", "attribute": "B", "prompt": "A is in"}]'
    hub.github[f"{ROWS}/{COMMIT}/data/facts.json"] = facts
    what = {"kind": "github", "path": "data/facts.json", "sha256": hashlib.sha256(facts).hexdigest()}
    fetch = Fetch(tmp_path, hub, ROWS, **what)
    fetch.fetched()
    rows = pq.read_table(fetch.directory / "files" / "data" / "facts.parquet").to_pylist()
    assert rows == [{"subject": "A", "attribute": "B", "prompt": "A is in"}]
    absent = Fetch(tmp_path, hub, ROWS, **what | {"path": "nowhere.json"})
    assert absent.run()[0] == FINAL and "there is no such file at this commit" in absent.run()[1]
    other = Fetch(tmp_path, hub, ROWS, **what | {"sha256": "0" * 64})
    status, said = other.run()
    assert status == MAY_PASS and "arrived with sha256" in said and not (other.directory / MANIFEST).exists()
    assert not list((other.directory / "files").rglob("*.json"))
    assert "could not be fetched (ConnectionRefusedError)" in absent.run(SCALPEL_GITHUB="http://127.0.0.1:9")[1]


def test_a_dataset_without_a_commit_is_asked_for_one(hub, tmp_path):
    status, said = Fetch(tmp_path, hub, ROWS, "dataset", None, files=["test/*"]).run()
    assert status == FINAL and "someone/their-rows: no public source names a commit" in said and "revision:" in said


def test_a_broken_download_is_resumed(hub, tmp_path):
    """From the last of the 10 MiB that huggingface_hub keeps at a time."""
    content = random.Random(0).randbytes(12 * 2**20)
    hub.files["model", REPO, COMMIT]["second.safetensors"] = content
    hub.breaks["second.safetensors"] = 11 * 2**20
    fetch = Fetch(tmp_path, hub)
    fetch.fetched()
    first, second = hub.fetched("second.safetensors")[-2:]
    assert "Range" not in first and second["Range"] == f"bytes={10 * 2**20}-"
    assert fetch.files()["files/second.safetensors"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_refused_and_fetched_again(name, hub, tiny_base, tmp_path):
    content = (tiny_base / name).read_bytes()
    hub.wrong[name] = bytes([content[0] ^ 1]) + content[1:]
    fetch = Fetch(tmp_path, hub)
    status, said = fetch.run()
    assert status == MAY_PASS and f"{name} arrived with sha" in said and not (fetch.directory / MANIFEST).exists()
    others = len(hub.fetched("tokenizer.json"))
    fetch.fetched()
    assert fetch.files()[f"files/{name}"] == sha256_file(tiny_base / name)
    assert len(hub.fetched("tokenizer.json")) == others, "what was whole is kept"


def test_a_truncated_file_is_refused(hub, tiny_base, tmp_path):
    hub.wrong["config.json"] = (tiny_base / "config.json").read_bytes()[:-5]
    status, said = Fetch(tmp_path, hub).run()
    assert status == MAY_PASS and "start again" in said


def test_a_gated_repository_needs_the_token_and_the_token_lies_nowhere(hub, tmp_path):
    hub.gated[REPO] = TOKEN
    fetch = Fetch(tmp_path, hub)
    status, said = fetch.run()
    assert status == FINAL and f"{REPO}@aaaaaaaa is gated: accept its terms" in said and "HF_TOKEN" in said
    status, said = fetch.run(HF_TOKEN="hf_wrong")
    assert status == FINAL and "gated" in said
    status, said = fetch.run(HF_TOKEN=TOKEN)
    assert status == 0, said
    assert any(headers.get("Authorization") == f"Bearer {TOKEN}" for _, _, headers in hub.asked)
    stored = [headers for _, path, headers in hub.asked if path.startswith("/large/")]
    assert stored and not any("Authorization" in headers for headers in stored), "the storage is another host"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_rate_limit_may_pass(hub, tmp_path):
    hub.refusals = 1
    fetch = Fetch(tmp_path, hub)
    status, said = fetch.run()
    assert status == MAY_PASS and "the hub's rate limit is reached" in said
    fetch.fetched()


@pytest.mark.parametrize(
    ("repo", "revision", "sentence"),
    [
        (REPO, "c" * 40, "the repository has no such commit; correct `revision`"),
        ("someone/nothing", COMMIT, "there is no such repository, or it is private"),
    ],
)
def test_what_is_not_there_is_final(repo, revision, sentence, hub, tmp_path):
    status, said = Fetch(tmp_path, hub, repo, revision=revision).run()
    assert status == FINAL and sentence in said


def test_a_hub_that_does_not_answer_may_pass_and_offline_mode_is_named(hub, tmp_path):
    fetch = Fetch(tmp_path, hub)
    status, said = fetch.run(HF_HUB_OFFLINE="1")
    assert status == FINAL and "HF_HUB_OFFLINE" in said
    status, said = fetch.run(HF_ENDPOINT="http://127.0.0.1:9")
    assert status == MAY_PASS and "could not be fetched (ConnectError)" in said


def test_make_fetch_and_everything_after_it_offline(hub, tiny_base, tmp_path):
    """The Makefile's command, and then the base model with no hub there."""
    line = subprocess.run(["make", "-n", "fetch"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "snakemake --cores 2 --until fetch --config scale=cluster" in line
    model = {"kind": "hub", "repo": REPO, "revision": COMMIT}
    overrides = {"models": {"theirs": model}, "model": "theirs"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"overrides": overrides}))
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "2"]
    environment = on_loopback(hub, tmp_path) | {"HF_TOKEN": TOKEN}

    def run(*words: str) -> str:
        done = subprocess.run([*snakemake, *words], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr

    output = run("--until", "fetch", "--config", "scale=laptop")
    assert list(tmp_path.glob("results/fetch/*/manifest.json"))
    hub.__exit__()
    (base,) = tmp_path.glob("results/base/theirs-*")
    output += run(f"results/base/{base.name}/manifest.json")
    assert (base / "model" / "model.safetensors").is_file()
    assert TOKEN not in output
    for path in (tmp_path / "results").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_branches_are_resolved_to_commits(hub, tmp_path):
    runs = {"theirs": {"given": {"kind": "hub", "repo": REPO, "checkpoints": {100: "step-100"}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"runs": runs}))
    words = [sys.executable, "-m", "scripts.resolve"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=on_loopback(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "revisions.yaml").read_text()) == {f"{REPO}@step-100": COMMIT}
