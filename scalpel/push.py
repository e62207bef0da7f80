"""Upload one checkpoint with its model card to the hub, in one commit. Called by nothing but `make push`."""

from __future__ import annotations

import re
from pathlib import Path

from scalpel.errors import UserError
from scalpel.fetch import hub_errors

CARD = "README.md"


def push(folder: Path, card: str, repo: str, message: str, private: bool = True) -> str:
    """Create the model repository if there is none, private unless told otherwise, and commit the folder's files and
    the card. Returns the commit's address.

    The token is huggingface_hub's own affair (HF_TOKEN, or `hf auth login`) and is never told. Raises UserError, or
    Passing for what may pass by itself.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"{repo!r} is no repository of the hub; name it as <owner>/<name>.")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise UserError(
            "there is no token for the hub; set HF_TOKEN or log in with `hf auth login`, with leave to write."
        )
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != CARD]
    with hub_errors(repo, "uploaded"):
        hub = HfApi()
        hub.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path.name, str(path)) for path in files]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        return hub.create_commit(repo, operations, commit_message=message).commit_url
