"""The one place that loads a model: safetensors from local files, no remote code, every tensor there and in place.

transformers fills a missing or differently shaped tensor with random numbers, says so in a log, and carries on; a run
that starts from such a model, or a score of it, means nothing. So both are errors here, whoever loads.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from scalpel.artifact import checking
from scalpel.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # as recipes name them
SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors' headers do
OF_SAFETENSORS = {name: dtype for dtype, name in SAFETENSORS.items()}

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
HARMLESS = "rotary_emb.inv_freq"  # the one tensor too many that is: old versions saved it, it follows from config.json
TWO_HEADS = "config.json ties lm_head to the embeddings, but the file holds two different ones"
# Fields of config.json that say nothing about what the weights compute.
ASIDE = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout",
}  # fmt: skip


def load_model(directory: Path, dtype: str = "auto", device: torch.device | str = "cpu") -> PreTrainedModel:
    """A causal language model in evaluation mode, with every weight of `directory`.

    dtype: a name of DTYPES in which the weights are held, or ``auto``: as config.json says they were saved.
    Raises UserError naming the directory and the tensor when one is missing, has another shape or is unknown, when
    tied weights differ, and when a file is absent or damaged.
    """
    from transformers import AutoModelForCausalLM

    with _refusals(directory), _quiet():
        for file in (directory / "config.json", *weight_files(directory)):
            checking.checked(file)
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=DTYPES.get(dtype, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # named below, by tensor
            output_loading_info=True,
        )
        for name, saved, wanted in sorted(info["mismatched_keys"]):
            raise ValueError(f"tensor {name} has shape {list(saved)}, config.json asks for {list(wanted)}")
        for name in sorted(info["missing_keys"]):
            raise ValueError(f"tensor {name} is missing")
        for name in sorted(info["unexpected_keys"]):
            if not name.endswith(HARMLESS):
                raise ValueError(f"tensor {name} is none of this model's")
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        if model.config.tie_word_embeddings and head.weight is not embeddings.weight:
            raise ValueError(TWO_HEADS)  # transformers unties them then, other engines do not
        return model.to(device)


def replace_weights(model: PreTrainedModel, directory: Path) -> None:
    """Copy the weights of another checkpoint of the same architecture into `model`, in its dtype and on its device.

    Everything is checked first: raises UserError, as `load_model` does, with the model as it was.
    """
    check_weights(directory, model)
    with _refusals(directory):
        copy_tensors(model, read_tensors(directory))


def copy_tensors(model: PreTrainedModel, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy weights by their names in a saved model into `model`, each as it comes.

    Raises UserError as `checked` does; the model is then part old, part new.
    """
    there = dict(model.state_dict())
    with torch.no_grad():
        for name, tensor in checked(tensors, model):
            there[name].copy_(tensor)


# ---------------------------------------------------------------- what is saved


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold a saved model's weights: one, or those its index names.

    Raises OSError when there are none.
    """
    directory = Path(directory)
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    if not (directory / INDEX).is_file():
        checking.refuse_retired(directory / WHOLE)
        raise OSError(f"it holds no {WHOLE}; weights are read from safetensors only")
    names = set(json.loads((directory / INDEX).read_text())["weight_map"].values())
    return [directory / name for name in sorted(names)]


def read_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a saved model, one at a time."""
    for file in weight_files(directory):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no iterator)
                if not name.endswith(HARMLESS):
                    yield name, tensors.get_tensor(name)


# ---------------------------------------------------------------- checks before anything is changed


def architecture(directory: Path) -> PreTrainedModel:
    """The model that config.json describes, without weights: names, shapes and configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _refusals(directory), _quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def check_weights(directory: Path, model: PreTrainedModel) -> None:
    """Refuse a saved model whose tensors or configuration are not those of `model`, which may be without weights.

    Raises UserError naming what is missing, superfluous or different.
    """
    from transformers import AutoConfig

    with _refusals(directory), _quiet():
        files = weight_files(directory)
        for file in (directory / "config.json", *files):
            checking.checked(file)
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        mine, other = (
            {field: value for field, value in c.to_dict().items() if field not in ASIDE} for c in (model.config, config)
        )
        for field in sorted({*mine, *other}):
            if mine.get(field) != other.get(field):
                raise ValueError(f"{field} of config.json differs from that of the model it is to replace")
        shapes: dict[str, list[int]] = {}
        for file in files:
            with safe_open(file, "pt") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        wanted, needed = _expected(model)
        for name, shape in shapes.items():
            if not name.endswith(HARMLESS):
                _check(name, shape, wanted)
        if missing := needed - shapes.keys():
            raise ValueError(f"tensor {min(missing)} is missing")
        twice = {name: model.all_tied_weights_keys[name] for name in shapes.keys() - needed if name in wanted}
        saved = {name: tensor for name, tensor in read_tensors(directory) if name in {*twice, *twice.values()}}
        if any(not torch.equal(saved[name], saved[source]) for name, source in twice.items()):
            raise ValueError(TWO_HEADS)


def checked(tensors: Iterable[tuple[str, torch.Tensor]], model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as they come; UserError at one that is none of the model's, or at the end when one is missing."""
    wanted, missing = _expected(model)
    for name, tensor in tensors:
        try:
            _check(name, list(tensor.shape), wanted)
        except ValueError as error:
            raise UserError(f"weights sent to an engine: {error}; it holds another model.") from None
        missing.discard(name)
        yield name, tensor
    if missing:
        raise UserError(f"weights sent to an engine: tensor {min(missing)} is missing; send all of the model.")


def check_shapes(shapes: dict[str, list[int]], model: PreTrainedModel) -> None:
    """UserError when these are not the names and shapes of all weights of `model`, which may be without weights."""
    wanted, needed = _expected(model)
    try:
        for name, shape in shapes.items():
            _check(name, shape, wanted)
        if missing := needed - shapes.keys():
            raise ValueError(f"tensor {min(missing)} is missing")
    except ValueError as error:
        raise UserError(f"weights announced to an engine: {error}; it holds another model.") from None


def _expected(model: PreTrainedModel) -> tuple[dict[str, list[int]], set[str]]:
    """(shapes of a model's tensors by name, names of those that must be there: tied ones need not)."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return shapes, set(shapes) - tied


def _check(name: str, shape: list[int], wanted: dict[str, list[int]]) -> None:
    if name not in wanted:
        raise ValueError(f"tensor {name} is none of this model's")
    if wanted[name] != shape:
        raise ValueError(f"tensor {name} has shape {shape}, the model's {wanted[name]}")


# ---------------------------------------------------------------- the rest


def default_device() -> torch.device:
    """The first GPU this process sees, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def _refusals(directory: Path) -> Iterator[None]:
    """Whatever transformers and safetensors raise on a model that does not load, as one sentence."""
    from huggingface_hub.errors import StrictDataclassError

    expected = (SafetensorError, StrictDataclassError, OSError, ValueError, RuntimeError, KeyError, TypeError)
    try:
        yield
    except expected as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{directory} does not load ({text}); save it or make it again.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no report of transformers' own: what is wrong is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
