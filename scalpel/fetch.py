"""Fetch from the hub, or from GitHub, by commit hash: the only code of Scalpel that uses the network."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.data.tables import read_rows
from scalpel.errors import Passing, UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

MODEL_FILES = ["*.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt"]
BELOW = ["*/*"]  # of a model: folders hold other formats of it
GITHUB = "https://raw.githubusercontent.com"  # files of commits; SCALPEL_GITHUB in the environment names a mirror
NETWORK_SECONDS = 60.0
GIT, LFS = "sha1", "sha256"  # by which the hub names a file: of the git blob, of the bytes


def fetch(recipe: dict, out: Path) -> None:
    """Download ``recipe["repo"]`` at ``recipe["revision"]`` into `out`; files that are there whole are kept.

    The files matching ``recipe["files"]``, which a model may go without; a dataset's jsonl and csv are converted to
    parquet. Every file is hashed against the hub's listing of that commit. Of GitHub, one file of known sha256.
    Raises UserError, or Passing for what may pass by itself.
    """
    if recipe["type"] == "github":
        return fetch_file(recipe, out)
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    repo, revision, model = recipe["repo"], recipe["revision"], recipe["type"] == "model"
    if revision is None:
        raise UserError(
            f"{repo}: no public source names a commit of this dataset; look one up among its commits on the hub and "
            "give it: `overrides: {datasets: {<its name>: {source: {revision: <40 digits>}}}}`, or the path of a copy."
        )
    chosen: dict[str, Any]
    wished = recipe.get("files", MODEL_FILES) if model else recipe["files"]
    chosen = {"allow_patterns": wished, "ignore_patterns": BELOW if model else None}
    whose: dict[str, Any] = {"repo_type": recipe["type"], "revision": revision}
    with hub_errors(f"{repo}@{revision[:8]}"):
        entries = HfApi().list_repo_tree(repo, recursive=True, **whose)
        listed = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        snapshot_download(repo, local_dir=out, **whose, **chosen)
    wanted = list(filter_repo_objects(listed, **chosen))
    for name in wanted:
        check_file(out, name, listed[name])
    if not wanted:
        patterns = ", ".join(chosen["allow_patterns"])
        raise UserError(f"{repo}@{revision[:8]} holds no file matching {patterns}; correct the repository or `files`.")
    if not model:
        for path in [out / name for name in wanted if name.endswith((".jsonl", ".csv"))]:
            to_parquet(path)
        if not any(out.rglob("*.parquet")):
            raise UserError(f"{repo}@{revision[:8]}: none of {', '.join(wanted)} is parquet, jsonl or csv.")
    shutil.rmtree(out / ".cache")  # the download's own book-keeping, with dates in it


def fetch_file(recipe: dict, out: Path) -> None:
    """Download ``recipe["path"]`` of a GitHub repository at a commit into `out`, and convert it to parquet.

    Raises UserError when there is no such file or it is another one, Passing for what may pass by itself.
    """
    repo, revision, path = recipe["repo"], recipe["revision"], recipe["path"]
    what, target = f"{path} of {repo}@{revision[:8]}", out / recipe["path"]
    target.parent.mkdir(parents=True, exist_ok=True)
    host = os.environ.get("SCALPEL_GITHUB", GITHUB).rstrip("/")
    try:
        with urllib.request.urlopen(f"{host}/{repo}/{revision}/{path}", timeout=NETWORK_SECONDS) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise UserError(f"{what}: there is no such file at this commit; correct `repo` or `path`.") from None
        raise Passing(f"{what} could not be fetched (status {error.code}); start again later.") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = type(getattr(error, "reason", None) or error).__name__
        raise Passing(f"{what} could not be fetched ({why}); start again; check the network.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != recipe["sha256"]:
        raise Passing(
            f"{what} arrived with sha256 {found[:12]}, {recipe['sha256'][:12]} is wanted: start again; if it stays, "
            "correct `sha256`."
        )
    target.write_bytes(content)
    if not path.endswith(".parquet"):
        to_parquet(target)


def check_file(out: Path, name: str, listed: RepoFile) -> None:
    """Passing, with the file removed, when it is not the one that the hub's listing names."""
    path = out / name
    if listed.lfs is not None:
        kind, expected, total = LFS, listed.lfs.sha256, hashlib.sha256()
    else:
        kind, expected, total = GIT, listed.blob_id, hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    if total.hexdigest() != expected:
        path.unlink()
        raise Passing(
            f"{name} arrived with {kind} {total.hexdigest()[:12]}, the hub lists {expected[:12]}; it was removed: "
            "start again, and it is fetched again."
        )


@contextlib.contextmanager
def hub_errors(what: str, done: str = "fetched") -> Iterator[None]:
    """Whatever huggingface_hub raises, as one sentence without its own words, which may quote addresses.

    done: what could not be done with `what`.
    """
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's
            raise
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise UserError(f"{what} cannot be {done} while HF_HUB_OFFLINE is set; unset it.") from None
        if isinstance(cause, errors.GatedRepoError):
            raise UserError(
                f"{what} is gated: accept its terms on the hub, then set HF_TOKEN or log in with `hf auth login`."
            ) from None
        if isinstance(cause, errors.RevisionNotFoundError):
            raise UserError(f"{what}: the repository has no such commit; correct `revision`.") from None
        if isinstance(cause, errors.RepositoryNotFoundError):
            raise UserError(
                f"{what}: there is no such repository, or it is private; correct `repo`, or set HF_TOKEN."
            ) from None
        status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
        if status == 429:
            raise Passing(f"{what}: the hub's rate limit is reached; start again later, or set HF_TOKEN.") from None
        if status in (401, 403):
            raise UserError(f"{what}: the hub refuses access (status {status}); correct HF_TOKEN.") from None
        why = f"status {status}" if status else type(cause or error).__name__
        raise Passing(
            f"{what} could not be {done} ({why}); start again, what is whole is kept; check the network."
        ) from None


def branch_commits(repo: str) -> dict[str, str]:
    """Branch -> commit hash of a model repository; UserError when the hub does not answer."""
    from huggingface_hub import HfApi

    with hub_errors(repo):
        return {ref.name: ref.target_commit for ref in HfApi().list_repo_refs(repo).branches}


def to_parquet(path: Path) -> Path:
    """Write <name>.parquet beside a jsonl, json or csv file and return it.

    Columns of objects, whose keys differ per row, become JSON text in ``<column>__json``.
    """
    rows = read_rows(path)
    target = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), target, compression="zstd")
    return target
