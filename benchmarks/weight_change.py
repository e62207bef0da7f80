"""python -m benchmarks.weight_change [elements in millions]: streamed weight change against whole tensors in float32.

Both read the same two bf16 models from the page cache; the peer is a loop of safetensors' get_tensor,
float32 and torch.linalg.norm, one whole matrix at a time.
"""

import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scalpel.analysis.weight_change import weight_change
from scalpel.config import PROJECTIONS


def write_model(path: Path, millions: int, seed: int) -> int:
    """A bf16 model of layers of `PROJECTIONS`, 2048 x 2048 and 5504 x 2048; returns its bytes."""
    torch.manual_seed(seed)
    layers = max(1, millions * 1_000_000 // (4 * 2048 * 2048 + 3 * 5504 * 2048))
    tensors = {}
    for layer in range(layers):
        for projection in PROJECTIONS:
            block = "self_attn" if projection in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            shape = (2048, 2048) if block == "self_attn" else (5504, 2048)
            tensors[f"model.layers.{layer}.{block}.{projection}.weight"] = torch.randn(shape).bfloat16()
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return sum(t.numel() * 2 for t in tensors.values())


def whole_tensors(base: Path, checkpoint: Path) -> dict[str, float]:
    relative = {}
    with (
        safe_open(base / "model.safetensors", framework="pt") as a,
        safe_open(checkpoint / "model.safetensors", framework="pt") as b,
    ):
        for name in a.keys():  # noqa: SIM118  (safe_open is no mapping)
            original = a.get_tensor(name).float()
            difference = b.get_tensor(name).float() - original
            relative[name] = float(torch.linalg.norm(difference) / torch.linalg.norm(original))
    return relative


def best_of(times: int, call) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    millions = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = write_model(root / "base", millions, 0) + write_model(root / "checkpoint", millions, 1)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        peer = best_of(3, lambda: whole_tensors(root / "base", root / "checkpoint"))
        torch.set_num_threads(threads)
        print(f"{size / 1e9:.2f} GB of bf16, whole float32 tensors with torch.linalg.norm, 2 threads: {peer:.2f} s")
        for count in (1, 2):
            ours = best_of(3, lambda: weight_change(root / "base", [(1, root / "checkpoint")], root, count))  # noqa: B023
            print(f"scalpel, {count} thread(s): {ours:.2f} s, {size / ours / 1e9:.1f} GB/s, ratio {peer / ours:.1f}")
        expected = whole_tensors(root / "base", root / "checkpoint")
        rows = pq.read_table(root / "weight_change.parquet").to_pylist()
        for row in rows:
            name = next(n for n in expected if f".{row['layer']}." in n and row["projection"] in n)
            assert abs(row["relative"] / expected[name] - 1) < 1e-3  # the peer's own float32 sums are off by 2e-4


if __name__ == "__main__":
    main()
