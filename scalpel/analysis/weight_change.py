"""How far each matrix moved: ||W_checkpoint - W_base||_F / ||W_base||_F (paper section 4.2).

The seven projections of every layer, straight from safetensors files: no model is built, nothing is
held but a few chunks of `CHUNK` elements. A chunk of the base is read and converted once and compared
with all checkpoints in turn. Differences are float32 (float64 where a file holds float64), sums over
chunks float64; the authors computed in bfloat16. Where a checkpoint is stored more coarsely than the base (bfloat16,
and the base float32), W_base in the difference is the base rounded as the checkpoint is.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from scalpel.analysis.tensors import ChunkReader, Stored, as_stored, open_matrices, projection_order
from scalpel.errors import UserError
from scalpel.progress import track

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256 * 1024  # elements: the buffers of one thread stay in the processor's cache


def weight_change(base: Path, checkpoints: list[tuple[int, Path]], out: Path, threads: int = 1) -> None:
    """Write out/weight_change.parquet: step, layer, projection, change_norm, base_norm, relative.

    base: directory with model.safetensors, or shards with model.safetensors.index.json.
    checkpoints: (step, directory) pairs.
    Raises UserError naming file and tensor when one is damaged, missing, differently shaped or not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    rows = []
    threads_before = torch.get_num_threads()
    with ExitStack() as stack:
        matrices = open_matrices(base, [path for _, path in checkpoints], stack)
        stack.callback(torch.set_num_threads, threads_before)
        torch.set_num_threads(1)  # the threads below each take whole matrices
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        results = pool.map(lambda matrix: squared_norms(matrix.name, matrix.base, matrix.others), matrices)
        for (layer, projection, name, original, _), (base_square, change_squares) in zip(
            matrices, track(results, "weight change, matrix", total=len(matrices)), strict=True
        ):
            if base_square == 0:
                raise UserError(f"{original.path}: tensor {name} is all zeros, so no change relative to it exists.")
            for (step, _), change_square in zip(checkpoints, change_squares, strict=True):
                change, norm = math.sqrt(change_square), math.sqrt(base_square)
                rows.append((step, layer, projection, change, norm, change / norm))

    rows.sort(key=lambda row: (row[0], row[1], projection_order(row[2])))
    schema = pa.schema(
        {
            "step": pa.int64(),
            "layer": pa.int64(),
            "projection": pa.string(),
            "change_norm": pa.float64(),
            "base_norm": pa.float64(),
            "relative": pa.float64(),
        }
    )
    table = pa.table([[row[i] for row in rows] for i in range(len(schema))], schema=schema)
    pq.write_table(table, out / "weight_change.parquet", compression="zstd")


def squared_norms(name: str, base: Stored, others: list[Stored]) -> tuple[float, list[float]]:
    """||base||^2 and ||other - base||^2 for every other, float64 sums over float32 (or float64) chunks; the base of a
    difference is rounded as `tensors.as_stored` says."""
    import torch

    work = torch.float64 if any(item.dtype == "F64" for item in (base, *others)) else torch.float32
    elements = math.prod(base.shape)
    chunk = min(CHUNK, elements)
    original, other, squares = (torch.empty(chunk, dtype=work) for _ in range(3))
    readers = [ChunkReader(item, name, chunk) for item in (base, *others)]
    sums = [0.0] * len(readers)
    for start in range(0, elements, chunk):
        size = min(chunk, elements - start)
        ours, theirs = original[:size], other[:size]
        ours.copy_(readers[0].read(start, size))
        sums[0] += _sum_of_squares(ours, squares[:size], base, name)
        for i, reader in enumerate(readers[1:], 1):
            theirs.copy_(reader.read(start, size))
            theirs.sub_(as_stored(ours, base, reader.stored))
            sums[i] += _sum_of_squares(theirs, squares[:size], reader.stored, name)
    return sums[0], sums[1:]


def _sum_of_squares(values: Tensor, squares: Tensor, stored: Stored, name: str) -> float:
    """Pairwise sum of the squares (right to 1e-7, where a dot product is to 1e-5); `squares` is overwritten."""
    import torch

    total = float(torch.mul(values, values, out=squares).sum())
    if not math.isfinite(total):  # float32 overflows at 1.8e19 squared: look again before calling it damage
        total = float(values.double().square().sum())
        if not math.isfinite(total):
            raise UserError(f"{stored.path}: tensor {name} holds NaN or infinite values; the run diverged there.")
    return total
