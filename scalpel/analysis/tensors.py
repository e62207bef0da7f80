"""Tensors of saved models read from safetensors files piece by piece: no model is built, nothing is loaded whole.

What is analysed are the seven projections of every layer, matrix by matrix: of the base and of its checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalpel.artifact.checking import checked
from scalpel.config.training import PROJECTIONS
from scalpel.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TENSOR_NAME = re.compile(r"^model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.weight$")
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


PRECISION = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}  # bits of a significand


class Stored(NamedTuple):
    """Where a tensor lies: bytes [begin, end) of an open file."""

    path: Path
    descriptor: int
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Matrix(NamedTuple):
    """One projection of a layer: of the base, and of each checkpoint in the order in which these were given."""

    layer: int
    projection: str
    name: str
    base: Stored
    others: list[Stored]


def open_matrices(base: Path, checkpoints: list[Path], stack: ExitStack) -> list[Matrix]:
    """The projections of a saved model and its checkpoints, layer by layer; files stay open until `stack` closes.

    Raises UserError naming file and tensor when one is damaged, missing or differently shaped.
    """
    originals = _matrices(open_tensors(base, stack))
    if not originals:
        raise UserError(f"{base} holds no tensor named model.layers.<n>...._proj.weight; is it an Olmo2 model?")
    names = _complete(base, originals)
    opened = [open_tensors(path, stack) for path in checkpoints]
    found = []
    for layer, projection, name in names:
        original = originals[layer, projection][1]
        others = [
            _counterpart(name, original, tensors, path) for tensors, path in zip(opened, checkpoints, strict=True)
        ]
        found.append(Matrix(layer, projection, name, original, others))
    return found


def projection_order(projection: str) -> int:
    """Its place among a layer's."""
    return PROJECTIONS.index(projection)


class ChunkReader:
    """Reads elements of a stored tensor into one buffer, again and again.

    Positioned reads, not a memory map: a file truncated meanwhile is then an error and not a SIGBUS.
    """

    def __init__(self, stored: Stored, name: str, chunk: int):
        import torch

        self.stored, self.name = stored, name
        self.buffer = torch.empty(chunk, dtype=getattr(torch, DTYPES[stored.dtype]))
        self.bytes = memoryview(self.buffer.view(torch.uint8).numpy())

    def read(self, start: int, size: int) -> Tensor:
        width = self.buffer.element_size()
        wanted = self.bytes[: size * width]
        done = 0
        while done < len(wanted):
            got = os.preadv(self.stored.descriptor, [wanted[done:]], self.stored.begin + start * width + done)
            if not got:
                raise UserError(f"{self.stored.path}: tensor {self.name} ends early; the file was cut off meanwhile.")
            done += got
        return self.buffer[:size]


def as_stored(tensor: Tensor, of: Stored, like: Stored) -> Tensor:
    """A tensor stored as `of`, rounded as `like` stores numbers where that is coarser: a checkpoint in bfloat16 of
    a float32 base differs from it by the rounding alone, which is no change that training made."""
    import torch

    if PRECISION[like.dtype] >= PRECISION[of.dtype]:
        return tensor
    return tensor.to(getattr(torch, DTYPES[like.dtype])).to(tensor.dtype)


def open_tensors(directory: Path, stack: ExitStack) -> dict[str, Stored]:
    """All tensors of a saved model by name; the files stay open until `stack` closes."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return _open_file(directory / "model.safetensors", stack)
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files = sorted(set(weight_map.values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is damaged: it holds no weight_map; save the model again.") from None
    tensors: dict[str, Stored] = {}
    for file in files:
        found = _open_file(directory / file, stack)
        tensors |= {name: stored for name, stored in found.items() if weight_map.get(name) == file}
    for name, file in weight_map.items():
        if name not in tensors:
            raise UserError(f"{directory / file}: tensor {name} is missing, though {index.name} places it there.")
    return tensors


def _open_file(path: Path, stack: ExitStack) -> dict[str, Stored]:
    """Tensors of one safetensors file: 8 bytes header length, JSON header, data."""
    try:
        file = stack.enter_context(checked(path).open("rb", buffering=0))
    except OSError:
        raise UserError(f"{path} cannot be read; it is missing or the run that writes it is not finished.") from None
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
    if size < 8 or length > min(HEADER_LIMIT, size - 8):
        raise UserError(f"{path} is truncated or not a safetensors file: its header does not fit into {size} bytes.")
    try:
        header = json.loads(os.pread(file.fileno(), length, 8))
        header.pop("__metadata__", None)
        entries = {
            name: (item["dtype"], tuple(map(int, item["shape"])), *map(int, item["data_offsets"]))
            for name, item in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: its safetensors header cannot be parsed; save the model again.") from None
    tensors = {}
    for name, (dtype, shape, *offsets) in entries.items():
        if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
            raise UserError(f"{path} is damaged: tensor {name} has impossible offsets {offsets}.")
        begin, end = (8 + length + offset for offset in offsets)
        if end > size:
            raise UserError(f"{path} is truncated: tensor {name} ends at byte {end} of {size}; save the model again.")
        tensors[name] = Stored(path, file.fileno(), dtype, shape, begin, end)
    return tensors


def _matrices(tensors: dict[str, Stored]) -> dict[tuple[int, str], tuple[str, Stored]]:
    found = {}
    for name, stored in tensors.items():
        match = TENSOR_NAME.match(name)
        if match and match[2] in PROJECTIONS:
            found[int(match[1]), match[2]] = (name, _checked(name, stored))
    return found


def _complete(base: Path, found: dict[tuple[int, str], tuple[str, Stored]]) -> list[tuple[int, str, str]]:
    """(layer, projection, tensor name) of every layer up to the last; UserError when one is missing."""
    for layer in range(max(layer for layer, _ in found) + 1):
        for projection in PROJECTIONS:
            if (layer, projection) not in found:
                raise UserError(f"{base}: the {projection} of layer {layer} is missing; is the model complete?")
    return [(layer, projection, found[layer, projection][0]) for layer, projection in sorted(found)]


def _checked(name: str, stored: Stored) -> Stored:
    import torch

    if stored.dtype not in DTYPES:
        raise UserError(f"{stored.path}: tensor {name} has dtype {stored.dtype}; known are {', '.join(DTYPES)}.")
    width = getattr(torch, DTYPES[stored.dtype]).itemsize
    if math.prod(stored.shape) * width != stored.end - stored.begin:
        raise UserError(f"{stored.path} is damaged: tensor {name} has more or fewer bytes than its shape says.")
    return stored


def _counterpart(name: str, base: Stored, tensors: dict[str, Stored], checkpoint: Path) -> Stored:
    if name not in tensors:
        raise UserError(f"{checkpoint}: tensor {name} is missing; the checkpoint is not one of this base model.")
    other = _checked(name, tensors[name])
    if other.shape != base.shape:
        raise UserError(
            f"{other.path}: tensor {name} has shape {list(other.shape)}, in the base model {list(base.shape)}; "
            "the checkpoint is not one of this base model."
        )
    return other
