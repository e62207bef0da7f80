"""What an update looks like, matrix by matrix: how many entries it changed, its rank, and what became of the spectrum.

W0 is a matrix of the base model (rounded as the checkpoint is stored, where that is coarser), W that of a checkpoint,
D = W - W0, s(A) the singular values of A in falling order.

* unchanged: share of entries with W = W0 as both are stored; unchanged_bf16: the same after both are rounded to
  bfloat16 (to nearest, ties to even). "Sparsity" of an update in Mukherjee et al. (arXiv 2505.11711), and the surface
  artefact of "The Path Not Taken" (arXiv 2511.08567) where the second is large and the first is not.
* stable_rank: ||D||_F^2 / ||D||_2^2, between 1 and full_rank, the matrix's smaller side. energy_rank: the least r
  with s_1(D)^2 + ... + s_r(D)^2 >= energy ||D||_F^2. An update of nothing has neither: null.
* spectral_drift: ||s(W) - s(W0)||_2 / ||s(W0)||_2.
* angle_left, angle_right: the largest principal angle, in degrees, between the spaces of the first `top` left, or
  right, singular vectors of W and of W0 (Bjoerck and Golub, 1973). Where s_top and the next one are nearly equal, that
  space is ill-defined and turns by much for a small update.
* changed, other_changed, both_changed and the three with _bf16: shares of the entries that this run changed, that
  another run changed, and that both did, at the same checkpoint of both; null without another run. Sets that know
  nothing of each other share changed * other_changed.

Everything is float64. Spectra come from the eigenvalues of A^T A (of A A^T for a wide matrix), with which a singular
value is right to about 1e-8 s_1 at worst, and the leading ones to rounding: cheaper than an SVD, and no sketch, since
the rank at 99% of the energy needs the whole spectrum. Tests compare with numpy's SVD.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalpel.analysis.tensors import ChunkReader, Matrix, Stored, as_stored, open_matrices, projection_order
from scalpel.config.analysis import StructureRecipe
from scalpel.errors import UserError
from scalpel.progress import track

if TYPE_CHECKING:
    from torch import Tensor

SHARES = ("changed", "other_changed", "both_changed")


class Spectrum(NamedTuple):
    """Singular values, falling (n), and orthonormal bases of the leading left (m x k) and right (n x k) directions."""

    values: Tensor
    left: Tensor
    right: Tensor


def structure(
    base: Path, checkpoints: list[tuple[int, Path]], others: list[tuple[int, Path]] | None, recipe: StructureRecipe,
    out: Path, threads: int = 1,
) -> None:  # fmt: skip
    """Write out/structure.parquet: step, layer, projection, entries, full_rank and what the module's text names.

    base: directory of a saved model. checkpoints: (step, directory) pairs. others: those of another run, in the same
    order, as many; None: there is none. Raises UserError naming file and tensor when one is damaged, missing,
    differently shaped or not finite, and when a matrix of the base is all zeros.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    if others is not None and len(others) != len(checkpoints):
        raise UserError(
            f"one run has {len(checkpoints)} checkpoints to compare, the other {len(others)}; give their run as many."
        )
    threads_before = torch.get_num_threads()
    rows = []
    with ExitStack() as stack, torch.no_grad():
        stack.callback(torch.set_num_threads, threads_before)
        torch.set_num_threads(threads)
        directories = [path for _, path in [*checkpoints, *(others or [])]]
        for matrix in track(open_matrices(base, directories, stack), "structure of updates, matrix"):
            steps = [step for step, _ in checkpoints]
            rows += [
                {"step": step, "layer": matrix.layer, "projection": matrix.projection} | found
                for step, found in zip(steps, of_matrix(matrix, len(steps), recipe), strict=True)
            ]
    rows.sort(key=lambda row: (row["step"], row["layer"], projection_order(row["projection"])))
    whole = ("step", "layer", "entries", "full_rank", "energy_rank")
    numbers = [
        "unchanged",
        "unchanged_bf16",
        "stable_rank",
        "energy_rank",
        "spectral_drift",
        "angle_left",
        "angle_right",
    ]
    columns = ["step", "layer", "projection", "entries", "full_rank", *numbers]
    columns += [f"{share}{suffix}" for suffix in ("", "_bf16") for share in SHARES]
    kinds = {name: pa.int64() if name in whole else pa.float64() for name in columns} | {"projection": pa.string()}
    table = pa.table({name: [row.get(name) for row in rows] for name in columns}, schema=pa.schema(kinds))
    pq.write_table(table, out / "structure.parquet", compression="zstd")


def of_matrix(matrix: Matrix, count: int, recipe: StructureRecipe) -> list[dict]:
    """What is measured of one matrix at the first `count` counterparts; the others, if any, are another run's."""
    whole = whole_tensor(matrix.base, matrix.name)
    if not whole.any():
        raise UserError(f"{matrix.base.path}: tensor {matrix.name} is all zeros, so no change relative to it exists.")
    bases: dict[str, tuple[Tensor, Spectrum]] = {}  # by how a checkpoint is stored
    found = []
    for place in range(count):
        stored = matrix.others[place]
        tensor = whole_tensor(stored, matrix.name)
        if stored.dtype not in bases:
            rounded = as_stored(whole, matrix.base, stored)
            bases[stored.dtype] = rounded, spectrum(rounded, recipe.top)
        original, before = bases[stored.dtype]
        norm = float(before.values.norm())
        moved = changed(original, tensor)
        shares = {name: float(mask.double().mean()) for name, mask in moved.items()}
        row = {"entries": tensor.numel(), "full_rank": min(tensor.shape)}
        row |= {f"unchanged{suffix}": 1 - shares[suffix] for suffix in moved}
        after = spectrum(tensor, recipe.top)
        row |= ranks(tensor - original, recipe.energy)
        row["spectral_drift"] = float((after.values - before.values).norm()) / norm
        row["angle_left"] = largest_angle(before.left, after.left)
        row["angle_right"] = largest_angle(before.right, after.right)
        if len(matrix.others) > count:
            other = matrix.others[count + place]
            theirs = changed(as_stored(whole, matrix.base, other), whole_tensor(other, matrix.name))
            for suffix, mask in moved.items():
                both = (mask, theirs[suffix], mask & theirs[suffix])
                row |= {f"{share}{suffix}": float(m.double().mean()) for share, m in zip(SHARES, both, strict=True)}
        found.append(row)
    return found


def whole_tensor(stored: Stored, name: str) -> Tensor:
    """A stored matrix in float64, where the largest device is; UserError when it is not finite."""
    import torch

    from scalpel.weights import default_device

    elements = math.prod(stored.shape)
    tensor = ChunkReader(stored, name, elements).read(0, elements).reshape(stored.shape)
    tensor = tensor.to(default_device(), torch.float64)
    if not torch.isfinite(tensor).all():
        raise UserError(f"{stored.path}: tensor {name} holds NaN or infinite values; the run diverged there.")
    return tensor


def changed(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Which entries differ: as they are, under "", and rounded to bfloat16, under "_bf16"; 0 equals -0."""
    import torch

    return {"": before != after, "_bf16": before.to(torch.bfloat16) != after.to(torch.bfloat16)}


def spectrum(matrix: Tensor, top: int) -> Spectrum:
    """Singular values of a float64 matrix and its leading `top` singular directions (its smaller side at most)."""
    import torch

    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    squares, vectors = torch.linalg.eigh(tall.T @ tall)  # rising
    top = min(top, len(squares))
    right = vectors.flip(1)[:, :top]
    left = torch.linalg.qr(tall @ right)[0]
    values = squares.flip(0).clamp(min=0).sqrt()
    return Spectrum(values, left, right) if tall is matrix else Spectrum(values, right, left)


def ranks(update: Tensor, energy: float) -> dict[str, float | int | None]:
    """stable_rank and energy_rank of a float64 matrix; None where it is zero."""
    import torch

    scale = float(update.abs().max())
    if scale == 0:
        return {"stable_rank": None, "energy_rank": None}
    update = update / scale  # squares of an update of 1e-200 would be zero
    gram = update.T @ update if update.shape[0] >= update.shape[1] else update @ update.T
    squares = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    held = squares.cumsum(0)
    enough = int((held < energy * held[-1]).sum()) + 1
    return {"stable_rank": float(held[-1] / squares[0]), "energy_rank": enough}


def largest_angle(one: Tensor, other: Tensor) -> float:
    """Largest principal angle, in degrees, between the spaces of two orthonormal bases (n x k each).

    By its sine and its cosine together, so that small and right angles are both exact.
    """
    import torch

    common = one.T @ other
    cosine = torch.linalg.svdvals(common)[-1]
    sine = torch.linalg.svdvals(other - one @ common)[0]
    return math.degrees(math.atan2(float(sine), float(cosine)))
