"""What all methods share: schedule, freezing, checkpoints, logs and exact resumption.

A run is exact when it is resumed because nothing depends on where it was interrupted: the dataset given to
the trainer is the whole schedule in order (TRL re-seeds its samplers in later epochs), and a state is only
gone on from when it is complete, sizes and sha256 checked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, set_seed

from scalpel import progress
from scalpel.artifact import STATE, write_atomically
from scalpel.config import GRPORecipe, OptimizerRecipe, SFTRecipe, Trainable, TrainSettings
from scalpel.errors import Interrupted, UserError
from scalpel.launch import slurm
from scalpel.weights import DTYPES, SAFETENSORS, load_model

COMPLETE = "complete.json"
TIME_LIMIT = "the job's time limit is near"

# ---------------------------------------------------------------- schedule


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """`count` steps at which checkpoints are saved, the last one included.

    The paper's rule, every ceil(steps / count) steps and the last (571 -> 29, 58, ..., 551, 571), where it
    gives `count` of them; else the nearest even spacing.
    """
    if steps < count:
        raise UserError(f"{count} checkpoints do not fit into {steps} steps; lower `checkpoints` or train longer.")
    every = math.ceil(steps / count)
    paper = [*range(every, steps, every), steps]
    return paper if len(paper) == count else [round(i * steps / count) for i in range(1, count + 1)]


def read_rows(kept: Path, order: Path) -> tuple[dict[int, dict[str, Any]], np.ndarray, np.ndarray]:
    """Kept rows by number; the order's rows; its epochs."""
    rows = {row["row"]: row for row in pq.read_table(kept).to_pylist()}
    table = pq.read_table(order)
    ordered = table.column("row").to_numpy()
    unknown = set(ordered.tolist()) - rows.keys()
    if unknown:
        raise UserError(f"{order} names row {min(unknown)}, which {kept} does not hold; they are not of one run.")
    return rows, ordered, table.column("epoch").to_numpy()


def schedule(
    recipe: SFTRecipe | GRPORecipe, rows: dict[int, dict], ordered: np.ndarray, epochs: np.ndarray
) -> list[list[int]]:
    """Rows of every optimizer step, in the materialised order: step i takes up where step i - 1 ended.

    A run given in epochs ends with the last row of its last epoch, in a shorter step if need be.
    """
    if not len(ordered):
        raise UserError("the question order is empty: the filter kept no row; loosen `filter` or check the source.")
    wanted = recipe.steps
    if isinstance(recipe, SFTRecipe) and recipe.epochs is not None:
        ordered = ordered[epochs < recipe.epochs]
        if recipe.epochs > epochs.max() + 1:
            raise UserError(
                f"the question order holds {epochs.max() + 1} epochs, {recipe.epochs} are needed; raise order.epochs."
            )
    if isinstance(recipe, SFTRecipe) and recipe.matching == "tokens":
        steps = _by_tokens([rows[row]["tokens"] for row in ordered.tolist()], recipe.tokens_per_step)
        end = steps[-1][1] if steps else 0
        if wanted is None and end < len(ordered):
            steps.append((end, len(ordered)))
    else:
        by_sequence = isinstance(recipe, SFTRecipe) and recipe.matching == "sequences"
        size = recipe.sequences_per_step if by_sequence else recipe.questions_per_step
        steps = [(start, min(start + size, len(ordered))) for start in range(0, len(ordered), size)]
        if wanted is not None and steps and steps[-1][1] - steps[-1][0] < size:
            steps.pop()  # a run given in steps has whole ones
    if wanted is not None:
        if len(steps) < wanted:
            raise UserError(
                f"the question order feeds {len(steps)} steps, not {wanted}; raise order.epochs or lower `steps`."
            )
        steps = steps[:wanted]
    return [ordered[start:end].tolist() for start, end in steps]


def _by_tokens(lengths: list[int], budget: int) -> list[tuple[int, int]]:
    """Consecutive ranges whose tokens first reach `budget`; what is left at the end is in none."""
    ranges, start, total = [], 0, 0
    for index, length in enumerate(lengths):
        total += length
        if total >= budget:
            ranges.append((start, index + 1))
            start, total = index + 1, 0
    return ranges


# ---------------------------------------------------------------- model and freezing


def load_policy(directory: Path, dtype: str, engine: str = "single"):
    """The model to be trained.

    What the optimizer changes is float32 whatever `dtype`: in bfloat16 a step of 1e-6 is lost in rounding for
    almost every weight. DeepSpeed keeps float32 copies of its own and is given `dtype`; else the weights are
    float32 and `dtype` is that of the matrix products (autocast) and of the saved checkpoints.
    """
    return load_model(directory, dtype if engine == "zero2" else "float32")


def is_trainable(name: str, trainable: Trainable) -> bool:
    """Whether the parameter of this name trains, by its dotted name in an OLMo-2-like model."""
    parts = name.split(".")
    if trainable.only:
        return any(part in trainable.only for part in parts) or (trainable.also_lm_head and "lm_head" in parts)
    if trainable.freeze_mlp_layers and "mlp" in parts:
        return int(parts[parts.index("layers") + 1]) not in trainable.freeze_mlp_layers
    return True


def freeze(model, trainable: Trainable) -> None:
    """Set requires_grad; UserError when a layer to be frozen does not exist or nothing is left to train."""
    layers = model.config.num_hidden_layers
    beyond = [layer for layer in trainable.freeze_mlp_layers if not 0 <= layer < layers]
    if beyond:
        raise UserError(f"trainable.freeze_mlp_layers names layer {beyond[0]}; the model has layers 0 to {layers - 1}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable(name, trainable))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("`trainable` leaves nothing to train; check its names against the model's modules.")


def check_frozen(base: Path, checkpoint: Path, trainable: Trainable, had_gradient: bool) -> dict[str, list[str]]:
    """Compare every tensor of the last checkpoint with the base: {trained, frozen, trained_but_equal} names.

    Raises RuntimeError when a frozen tensor changed, or when no trained one did although some step had a
    gradient. In bfloat16 a small learning rate leaves some trained tensors as they were, so these are
    reported, not refused; a GRPO run whose rewards never differ within a group rightly changes nothing.
    """
    groups: dict[str, list[str]] = {"trained": [], "frozen": [], "trained_but_equal": []}
    with _tensors(base) as before, _tensors(checkpoint) as after:
        for name in sorted(after):
            old, new = before[name].get_tensor(name), after[name].get_tensor(name)
            equal = old.shape == new.shape and torch.equal(old.to(new.dtype), new)
            if not is_trainable(name, trainable):
                if not equal:
                    raise RuntimeError(f"{name} was frozen and changed all the same: the run is not what it says.")
                groups["frozen"].append(name)
            else:
                groups["trained_but_equal" if equal else "trained"].append(name)
    if not groups["trained"] and had_gradient:
        raise RuntimeError("no trained tensor changed: the run did not train.")
    return groups


@contextlib.contextmanager
def _tensors(directory: Path) -> Iterator[dict[str, Any]]:
    """Open safetensors files of a model directory, keyed by tensor name."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(directory.glob("*.safetensors"))]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118 (no iterator)


# ---------------------------------------------------------------- states and checkpoints


class World(NamedTuple):
    """This process among the run's ranks."""

    rank: int = 0
    ranks: int = 1

    @classmethod
    def here(cls) -> World:
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes what all of them make."""
        return self.rank == 0

    def everyone(self, items: list) -> list:
        """The ranks' lists joined in their order."""
        if self.ranks == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def from_first(self, value):
        """What rank 0 holds."""
        if self.ranks == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


def usable_state(state: Path) -> Path | None:
    """The newest complete state; incomplete and damaged ones are named, removed and passed over.

    complete.json lists the state's files and how far the journals went, with size and sha256, and the
    checkpoints exported until then, by size. Whatever is missing makes the state unusable.
    """
    found = sorted(state.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for path in found:
        try:
            complete = json.loads((path / COMPLETE).read_text())
            files = complete["files"]
            whole = (
                all((path / name).stat().st_size == item["bytes"] for name, item in files.items())
                and digests(path, list(files)) == files
                and all(file_digest(state / name, item["bytes"]) == item for name, item in complete["journals"].items())
                and all(
                    (state.with_name("checkpoints") / name).stat().st_size == size
                    for name, size in complete["checkpoints"].items()
                )
            )
        except (OSError, json.JSONDecodeError, AttributeError, KeyError, TypeError):
            whole = False
        if whole:
            print(f"going on from step {path.name.rsplit('-', 1)[1]}", file=sys.stderr, flush=True)
            return path
        print(f"{path} is incomplete or damaged: going back to what was saved before", file=sys.stderr, flush=True)
        shutil.rmtree(path)
    return None


def file_digest(path: Path, length: int | None = None) -> dict[str, Any]:
    """{bytes, sha256} of a file, or of its first `length` bytes; fewer when it is shorter."""
    left = path.stat().st_size if length is None else length
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(min(1 << 20, left - size)):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def digests(directory: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """file_digest of many files, several at a time: a state of a 7B model is over 100 GB."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: file_digest(directory / name), names), strict=True))


class Journal:
    """Rows that belong to steps (questions asked, rollouts), on disk at once and cut back on resumption."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema = path, schema

    def cut(self, length: int) -> None:
        """Forget what was written after the first `length` bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(length)

    def add(self, rows: list[dict]) -> None:
        with open(self.path, "a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def sync(self) -> dict[str, Any]:
        """Make sure of what was written; returns its {bytes, sha256}."""
        with open(self.path, "a") as file:
            os.fsync(file.fileno())
        return file_digest(self.path)

    def write_parquet(self, target: Path, rows_at_once: int = 4096) -> None:
        with open(self.path) as lines, pq.ParquetWriter(target, self.schema, compression="zstd") as writer:
            while part := [json.loads(line) for line in itertools.islice(lines, rows_at_once)]:
                writer.write_table(pa.Table.from_pylist(part, schema=self.schema))


QUESTIONS = pa.schema({"step": pa.int64(), "position": pa.int64(), "row": pa.int64(), "uuid": pa.string()})


class Keeper(TrainerCallback):
    """Saves at the checkpoint steps, exports model-only checkpoints, marks states complete, shows progress."""

    def __init__(
        self, out: Path, base: Path, steps: list[int], settings: TrainSettings, dtype: str, journals: list[Journal]
    ):
        self.out, self.base, self.steps, self.total = out, base, steps, steps[-1]
        self.settings, self.dtype, self.journals = settings, DTYPES[dtype], journals
        self.world = World.here()
        self.first: int | None = None
        self.at = 0  # steps taken
        self.stop = ""  # why the run is to stop early
        self.stop_at = None  # time.time() after which the run is to stop, so that the job's time limit finds it saved
        deadline = slurm.deadline() if self.world.first else None
        if deadline:  # a short job uses half its time at least
            now = time.time()
            self.stop_at = max(deadline - settings.stop_before_seconds, (now + deadline) / 2)
        self.last = self.started = time.monotonic()

    def on_train_begin(self, args, state, control, **_):
        self.first = self.at = state.global_step
        self.started = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        self.at = state.global_step
        if self.stop_at and time.time() > self.stop_at:
            self.stop = self.stop or TIME_LIMIT
        self.stop = max(self.world.everyone([self.stop]))  # a signal may reach some ranks a step earlier than others
        control.should_save = state.global_step in self.steps or bool(self.stop)
        control.should_training_stop = control.should_training_stop or bool(self.stop)

    def on_log(self, args, state, control, logs=None, **_):
        if not self.world.first:
            return
        done = state.global_step - self.first
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(f"the loss of step {state.global_step} is {logs['loss']}; lower the run's learning_rate.")
        if done and "loss" in (logs or {}) and (time.monotonic() - self.last >= 5 or state.global_step == self.total):
            self.last = time.monotonic()
            reward = f", reward {logs['reward']:.2f}" if "reward" in logs else ""
            eta = (self.last - self.started) / done * (self.total - state.global_step)
            print(
                f"step {state.global_step}/{self.total}, loss {logs['loss']:.4f}{reward}, "
                f"elapsed {progress.clock(self.last - self.started)}, ETA {progress.clock(eta)}",
                file=sys.stderr,
                flush=True,
            )

    def on_save(self, args, state, control, **_):
        self.world.everyone([])  # every rank has written its part
        if not self.world.first:
            return
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.global_step in self.steps:
            self._export(saved, state.global_step)
        exported = [self.out / "checkpoints" / f"step-{step:06d}" for step in self.steps if step <= state.global_step]
        complete = {
            "files": digests(saved, sorted(p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file())),
            "journals": {journal.path.name: journal.sync() for journal in self.journals},
            "checkpoints": {f"{d.name}/{p.name}": p.stat().st_size for d in exported for p in sorted(d.iterdir())},
        }
        write_atomically(saved / COMPLETE, json.dumps(complete))
        complete = sorted(Path(args.output_dir).glob(f"checkpoint-*/{COMPLETE}"), key=lambda p: p.stat().st_mtime_ns)
        for old in complete[: -self.settings.keep_state]:
            shutil.rmtree(old.parent)

    def _export(self, saved: Path, step: int) -> None:
        """Model-only copy under checkpoints/, complete or absent."""
        target = self.out / "checkpoints" / f"step-{step:06d}"
        partial = target.with_name(f".{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in saved.iterdir():
            if path.name.startswith("model") or path.name == "config.json":
                self._copy(path, partial / path.name)
        for path in self.base.iterdir():  # tokenizer, template and generation settings are the base's
            if path.suffix != ".safetensors" and not path.name.endswith(".index.json") and path.name != "config.json":
                shutil.copyfile(path, partial / path.name)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)

    def _copy(self, path: Path, target: Path) -> None:
        """Copy a file of the model; weights as `dtype`."""
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                narrow = all(file.get_slice(name).get_dtype() == SAFETENSORS[self.dtype] for name in file.keys())  # noqa: SIM118
            if not narrow:
                tensors = {name: tensor.to(self.dtype) for name, tensor in load_file(path).items()}
                return save_file(tensors, target, metadata={"format": "pt"})
        shutil.copyfile(path, target)


@contextlib.contextmanager
def disk_errors(out: Path, keeper: Keeper) -> Iterator[None]:
    """Turn a full disk, however the libraries report it, into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text
        torn = "PytorchStreamWriter" in text or "unexpected pos" in text  # torch.save's words for a failed write
        if full or (torn and shutil.disk_usage(out).free < 64 << 20):
            raise UserError(
                f"No space left on the disk of {out} after step {keeper.at}; free some and start again: "
                "the run goes on from the checkpoint before."
            ) from error
        raise


@contextlib.contextmanager
def stopping_on_signal(keeper: Keeper) -> Iterator[None]:
    """SIGTERM and SIGUSR1 ask the run to save after the step it is at and to stop."""

    def ask(number, _):
        keeper.stop = keeper.stop or signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- one run


def settle(recipe: OptimizerRecipe, settings: TrainSettings) -> None:
    """Seeds, threads and deterministic algorithms of this process; call before the model is loaded."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may differ from run to run
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid; costs a fifth of a GRPO step
    set_seed(recipe.seed)


def engine_arguments(recipe: OptimizerRecipe, settings: TrainSettings) -> dict[str, Any]:
    """TrainingArguments by which several ranks share the work, or by which one does all of it."""
    gpu = torch.cuda.is_available()
    if settings.engine == "zero2":
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        return {
            "deepspeed": {
                "bf16": {"enabled": recipe.dtype == "bfloat16"},
                "zero_optimization": {
                    "stage": 2, "overlap_comm": gpu, "contiguous_gradients": True, "reduce_bucket_size": 500_000_000,
                },
                "gradient_clipping": recipe.max_grad_norm,
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "train_batch_size": "auto",
            },
            "use_cpu": not gpu,
        }  # fmt: skip
    if settings.engine == "fsdp":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "state_dict_type": "FULL_STATE_DICT",
                "reshard_after_forward": True,
            },
            "use_cpu": not gpu,
        }
    return {"use_cpu": not gpu}


def common_arguments(recipe: OptimizerRecipe, settings: TrainSettings, out: Path, steps: int) -> dict[str, Any]:
    """TrainingArguments of every method."""
    return engine_arguments(recipe, settings) | {
        "output_dir": str(out / STATE),
        "max_steps": steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": 0 if recipe.schedule == "constant" else math.ceil(recipe.warmup * steps),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": recipe.dtype == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would log the mean of the steps before in place of a NaN
        "save_strategy": "no",  # Keeper asks for saves
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
    }


def run(trainer, keeper: Keeper, out: Path, base: Path, trainable: Trainable, columns: dict[str, str]) -> None:
    """Train to the end from the newest usable state, then write checkpoints.json, log.parquet and trained.json.

    columns: names in the trainer's log -> names in log.parquet. Raises Interrupted when the job's time limit came
    near or SIGTERM or SIGUSR1 asked for it, and the state is saved.
    """
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    state = keeper.world.from_first(usable_state(out / STATE) if keeper.world.first else None)
    if keeper.world.first:
        written = json.loads((state / COMPLETE).read_text())["journals"] if state else {}
        for journal in keeper.journals:
            journal.cut(written[journal.path.name]["bytes"] if state else 0)
    with disk_errors(out, keeper), stopping_on_signal(keeper):
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    if keeper.at < keeper.total:
        raise Interrupted(f"saved after step {keeper.at} of {keeper.total}: {keeper.stop}", keeper.stop == TIME_LIMIT)
    if not keeper.world.first:
        return
    listing = [
        {"index": index, "step": step, "path": f"checkpoints/step-{step:06d}"}
        for index, step in enumerate(keeper.steps, start=1)
    ]
    expected = {Path(item["path"]).name for item in listing}
    for path in (out / "checkpoints").iterdir():
        if path.name not in expected:
            shutil.rmtree(path)
    rows = [
        {"step": entry["step"], **{new: entry.get(old) for old, new in columns.items()}}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    pq.write_table(pa.Table.from_pylist(rows), out / "log.parquet", compression="zstd")
    had_gradient = any(row["grad_norm"] for row in rows)
    if not had_gradient:
        print(
            "warning: no step had a gradient (all rewards of each group were equal); the model is the base", flush=True
        )
    trained = check_frozen(base, out / listing[-1]["path"], trainable, had_gradient)
    write_atomically(out / "trained.json", json.dumps(trained, indent=1) + "\n")
    write_atomically(out / "checkpoints.json", json.dumps(listing, indent=1) + "\n")
