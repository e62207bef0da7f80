"""Fixtures all tests share. Tests that need the real data of ../shared skip where it is absent, and say so."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SCALPEL_SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(items: list) -> None:
    """The complete run first: it is the longest, and what it leaves idle of two cores the other tests take."""
    items.sort(key=lambda item: "workflow" not in item.keywords)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip that says it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"real data is absent: {data}; set SCALPEL_SHARED to the folder that holds data/")
    return data


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """A directory with world/ and base/ of tests/tiny.py, made once."""
    from tests.tiny import make_tiny_base

    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_base(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_base(tiny_world) -> Path:
    return tiny_world / "base" / "model"


@pytest.fixture(scope="session")
def tiny_sets(tiny_world, tmp_path_factory) -> dict[str, Path]:
    """The tiny world's question sets by name, as the questions stage lays them out."""
    from tests.tiny import make_tiny_sets

    return make_tiny_sets(tiny_world / "world" / "evaluation", tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def other_base(tiny_base, tmp_path_factory) -> Path:
    """A second checkpoint: the tiny base's weights, shaken."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_base, directory)
    generator = torch.Generator().manual_seed(0)
    weights = load_file(directory / "model.safetensors")
    shaken = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(shaken, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def tiny_data(tiny_base, tmp_path_factory) -> tuple[Path, Path]:
    """(kept.parquet, order.parquet): 14 rows, three epochs."""
    from tests.tiny import make_tiny_data

    return make_tiny_data(tmp_path_factory.mktemp("data"), tiny_base)
