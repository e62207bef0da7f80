"""Fetch from the hub by commit hash: the only code of Scalpel that uses the network."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.data.tables import read_rows
from scalpel.errors import UserError

MODEL_FILES = ["*.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt"]


def fetch(recipe: dict, out: Path) -> None:
    """Download ``recipe["repo"]`` at ``recipe["revision"]`` into `out`; files already there are not fetched again.

    Of a dataset, the files matching ``recipe["files"]``; jsonl and csv are converted to parquet.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, revision = recipe["repo"], recipe["revision"]
    patterns = MODEL_FILES if recipe["type"] == "model" else recipe["files"]
    try:
        snapshot_download(repo, repo_type=recipe["type"], revision=revision, local_dir=out, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise UserError(
            f"{repo}@{revision[:8]} could not be fetched ({type(error).__name__}); check the network, the revision, "
            "and for gated data your access token."
        ) from error
    if recipe["type"] == "dataset":
        for path in sorted(out.rglob("*")):
            if path.suffix in (".jsonl", ".csv"):
                to_parquet(path)
        if not any(out.rglob("*.parquet")):
            raise UserError(f"{repo}@{revision[:8]} holds no file matching {', '.join(patterns)}; correct `files`.")


def branch_commits(repo: str) -> dict[str, str]:
    """Branch -> commit hash of a model repository; UserError when the hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return {ref.name: ref.target_commit for ref in HfApi().list_repo_refs(repo).branches}
    except (HfHubHTTPError, ConnectionError, OSError) as error:
        raise UserError(
            f"{repo}: its branches could not be listed ({type(error).__name__}); check the network and the name."
        ) from error


def to_parquet(path: Path) -> Path:
    """Write <name>.parquet beside a jsonl or csv file and return it.

    Columns of objects, whose keys differ per row, become JSON text in ``<column>__json``.
    """
    rows = read_rows(path)
    target = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), target, compression="zstd")
    return target
