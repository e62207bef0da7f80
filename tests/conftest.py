"""Fixtures all tests share. Tests that need the real data of ../shared skip where it is absent, and say so."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SCALPEL_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip that says it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"real data is absent: {data}; set SCALPEL_SHARED to the folder that holds data/")
    return data
