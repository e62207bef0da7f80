"""What all trainers share: arguments, saving at checkpoint steps, stopping, and an end that is checked.

A run is exact when it is resumed because nothing depends on where it was interrupted: what a step asks is looked up in
the materialised order by the step's number, and a state is only resumed from when it is complete, sizes and sha256
checked (scalpel/methods/state.py). One process on CPUs so ends bitwise equal to an uninterrupted run; kernels of GPUs
need not (docs/cluster.md).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import TrainerCallback, set_seed

from scalpel import progress
from scalpel.artifact import disk
from scalpel.artifact.files import CIRCUMSTANCES, STATE, sync, to_disk, write_atomically
from scalpel.config.training import MethodRecipe, Trainable, TrainSettings
from scalpel.errors import Interrupted, UserError
from scalpel.inference.remote import COMPLETION_SECONDS
from scalpel.launch import slurm
from scalpel.methods import METHODS
from scalpel.methods.freezing import check_frozen
from scalpel.methods.meter import FLOPS, WRITTEN, Meter, sampled_steps
from scalpel.methods.ranks import Ranks
from scalpel.methods.state import COMPLETE, Journal, digests, usable_state
from scalpel.methods.tracking import tracking_arguments
from scalpel.weights import DTYPES, SAFETENSORS

TIME_LIMIT = "the job's time limit is near"
MARGIN = 1.25  # times the longest step and save seen: what must be left of a job's time for another step
CLOCK = pa.schema({"step": pa.int64(), "seconds": pa.float64()})


@dataclass(frozen=True)
class TrainingRun:
    """One run to be carried out. start: the model directory whose weights are trained on; base: the one that gives
    tokenizer and template. trainable: the recipe's, with layers that a trace named filled in."""

    recipe: Any  # a MethodRecipe's subclass
    base: Path
    start: Path
    kept: Path
    order: Path
    seed: int
    trainable: Trainable
    out: Path
    settings: TrainSettings


def per_batch(recipe: MethodRecipe) -> int:
    """Optimizer steps made of one batch of rollouts; 1 for a method that has none."""
    return getattr(recipe, "updates", 1) * getattr(recipe, "iterations", 1)


# ---------------------------------------------------------------- saving


class Saving(TrainerCallback):
    """Saves at the checkpoint steps, exports model-only checkpoints, marks states complete, shows progress."""

    def __init__(self, run: TrainingRun, steps: list[int], journals: list[Journal]):
        self.out, self.base, self.steps, self.total = run.out, run.base, steps, steps[-1]
        self.settings, self.dtype = run.settings, DTYPES[run.recipe.dtype]
        self.flops = Journal(run.out / STATE / "flops.jsonl", FLOPS)
        self.clock = Journal(run.out / STATE / "clock.jsonl", CLOCK)
        self.journals = [*journals, self.flops, self.clock]
        self.by_servers = bool(run.settings.server and METHODS[run.recipe.method].samples)
        self.meter = Meter(sampled_steps(self.total, per_batch(run.recipe)))
        self.ranks = Ranks.here()
        self.trainer: MethodTrainer | None = None
        self.first: int | None = None
        self.at = 0  # steps taken
        self.stop = ""  # why the run is to stop early
        self.stop_at = None  # time.time() after which the run is to stop, so that the job's time limit finds it saved
        self.deadline = slurm.deadline() if self.ranks.first else None
        if self.deadline:  # a short job uses half its time at least, unless a step takes longer
            now = time.time()
            self.stop_at = max(self.deadline - run.settings.stop_before_seconds, (now + self.deadline) / 2)
        self.longest_step = self.longest_save = 0.0  # seconds, of this process: the first of a batch writes rollouts
        self.last = self.started = self.begun = self.since = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.settings.engine == "fsdp" and self.ranks.count > 1 and not isinstance(model, FSDPModule):
            raise UserError("the model was not sharded over the ranks; give train_settings.engine zero2.")
        self.first = self.at = state.global_step
        self.started = self.since = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = time.monotonic()
        self.meter.start(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at = state.global_step
        assert self.trainer is not None
        self.trainer.after_step(self.at)
        self._measured(self.meter.stop())
        if self.ranks.first:
            self.clock.add([{"step": self.at, "seconds": round(time.monotonic() - self.begun, 4)}])
        self.longest_step = max(self.longest_step, time.monotonic() - self.since)
        if self.late():
            self.stop = self.stop or TIME_LIMIT
        self.stop = max(self.ranks.everyone([self.stop]))  # a signal may reach some ranks a step earlier than others
        control.should_save = state.global_step in self.steps or bool(self.stop)
        control.should_training_stop = control.should_training_stop or bool(self.stop)
        self.since = time.monotonic()

    def late(self) -> bool:
        """Whether the job's time limit is near, or might come before another step is taken and saved."""
        if self.deadline is None or self.stop_at is None:
            return False
        needed = MARGIN * (self.longest_step + self.longest_save)
        return time.time() > min(self.stop_at, self.deadline - needed)

    def _measured(self, spent: dict[str, int] | None) -> None:
        """Write down the FLOPs of a sampled step, of all ranks; those of servers are not seen."""
        if spent is None:
            return
        of_ranks = self.ranks.everyone([spent])
        if self.ranks.first:
            row = {name: sum(rank[name] for rank in of_ranks) for name in spent}
            self.flops.add([{"step": self.at} | row | ({WRITTEN: None} if self.by_servers else {})])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not self.ranks.first:
            return
        done = state.global_step - self.first
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(f"the loss of step {state.global_step} is {logs['loss']}; lower the run's learning_rate.")
        if done and "loss" in (logs or {}) and (time.monotonic() - self.last >= 5 or state.global_step == self.total):
            self.last = time.monotonic()
            reward = f", reward {logs['reward']:.2f}" if logs.get("reward") is not None else ""
            eta = (self.last - self.started) / done * (self.total - state.global_step)
            print(
                f"step {state.global_step}/{self.total}, loss {logs['loss']:.4f}{reward}, "
                f"elapsed {progress.clock(self.last - self.started)}, ETA {progress.clock(eta)}",
                file=sys.stderr,
                flush=True,
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        assert self.trainer is not None
        self.trainer.save_more(saved)
        self.ranks.everyone([])  # every rank has written its part
        if not self.ranks.first:
            return
        if state.global_step in self.steps:
            self._export(saved, state.global_step)
        files = [path for path in sorted(saved.rglob("*")) if path.is_file()]
        to_disk([*files, saved])
        exported = [self.out / "checkpoints" / f"step-{step:06d}" for step in self.steps if step <= state.global_step]
        complete: dict[str, Any] | list[Path] = {
            "files": digests(saved, [path.relative_to(saved).as_posix() for path in files]),
            "journals": {journal.path.name: journal.sync() for journal in self.journals},
            "checkpoints": {f"{d.name}/{p.name}": p.stat().st_size for d in exported for p in sorted(d.iterdir())},
        }
        write_atomically(saved / COMPLETE, json.dumps(complete))
        complete = sorted(Path(args.output_dir).glob(f"checkpoint-*/{COMPLETE}"), key=lambda p: p.stat().st_mtime_ns)
        for old in complete[: -self.settings.keep_state]:
            shutil.rmtree(old.parent)
        self.longest_save = max(self.longest_save, time.monotonic() - self.since)
        self.since = time.monotonic()

    def _export(self, saved: Path, step: int) -> None:
        """Model-only copy under checkpoints/, complete and on the disk, or absent."""
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
        to_disk(list(partial.iterdir()))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        sync(target.parent)

    def _copy(self, path: Path, target: Path) -> None:
        """Copy a file of the model; weights as `dtype`."""
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                wanted = SAFETENSORS[self.dtype]
                there = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no iterator)
            if there != {wanted}:
                tensors = {name: tensor.to(self.dtype) for name, tensor in load_file(path).items()}
                return save_file(tensors, target, metadata={"format": "pt"})
        shutil.copyfile(path, target)


@contextlib.contextmanager
def disk_errors(out: Path, saving: Saving) -> Iterator[None]:
    """Turn a disk that cannot be written, however the libraries report it, into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        text = disk.sentence(error, out, f"after step {saving.at}")
        if text is None:
            raise
        raise UserError(f"{text}: the run resumes from the checkpoint before.") from error


@contextlib.contextmanager
def stopping_on_signal(saving: Saving) -> Iterator[None]:
    """SIGTERM and SIGUSR1 ask the run to save after the step it is at and to stop."""

    def ask(number: int, _: Any) -> None:
        saving.stop = saving.stop or signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- arguments


def make_deterministic(seed: int, threads: int) -> None:
    """Seeds, threads and deterministic algorithms of this process; call before the model is loaded.

    torch warns and goes on where an operation is not deterministic, as attention's backward pass on GPUs then is not.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may differ from run to run
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid; costs a fifth of a GRPO step
    set_seed(seed)


def training_dtype(recipe: MethodRecipe, settings: TrainSettings) -> str:
    """The dtype that weights are loaded in.

    What the optimizer changes is float32 whatever the recipe's dtype: in bfloat16 a step of 1e-6 is lost in rounding
    for almost every weight. DeepSpeed keeps float32 copies of its own and is given the recipe's; else the weights are
    float32 and the recipe's dtype is that of the matrix products (autocast) and of the saved checkpoints.
    """
    return recipe.dtype if settings.engine == "zero2" else "float32"


def engine_environment(settings: TrainSettings) -> dict[str, str]:
    """What accelerate reads of a rank's environment."""
    return {"ACCELERATE_USE_DEEPSPEED": "true"} if settings.engine == "zero2" else {}


def engine_arguments(recipe: MethodRecipe, settings: TrainSettings, gpu: bool | None = None) -> dict[str, Any]:
    """TrainingArguments by which several ranks share the work, or by which one does all of it.

    gpu: whether each rank has one; None: as this machine has.
    """
    gpu = torch.cuda.is_available() if gpu is None else gpu
    os.environ.update(engine_environment(settings))
    if settings.engine == "zero2":
        zero = {
            "stage": 2, "overlap_comm": gpu, "contiguous_gradients": True, "reduce_bucket_size": 500_000_000,
        }  # fmt: skip
        if settings.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {
            "deepspeed": {
                "bf16": {"enabled": recipe.dtype == "bfloat16"},
                # Else DeepSpeed adds the gradients of micro-batches and ranks up in bfloat16.
                "data_types": {"grad_accum_dtype": "fp32"},
                "communication_data_type": "fp32",
                "zero_optimization": zero,
                "gradient_clipping": recipe.max_grad_norm,
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "train_batch_size": "auto",
            },
            "use_cpu": not gpu,
        }
    if settings.engine == "fsdp":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "state_dict_type": "FULL_STATE_DICT",
                "reshard_after_forward": True,
            },
            # Else transformers adds the micro-batches of a step up unsharded: a whole float32 gradient on every GPU.
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
            "use_cpu": not gpu,
        }
    return {"use_cpu": not gpu}


def common_arguments(run: TrainingRun, steps: int, gpu: bool | None = None) -> dict[str, Any]:
    """TrainingArguments of every method. gpu: as in `engine_arguments`."""
    recipe, settings = run.recipe, run.settings
    return engine_arguments(recipe, settings, gpu) | {
        "output_dir": str(run.out / STATE),
        "max_steps": steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": warmup_steps(recipe, steps),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch",
        "seed": run.seed,
        "data_seed": run.seed,
        "bf16": recipe.dtype == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would log the mean of the steps before in place of a NaN
        "save_strategy": "no",  # Saving asks for saves
        **tracking_arguments(settings.tracking, run.out),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
        # Ranks wait while rank 0 waits for completions, or for a server that is started again.
        "ddp_timeout": int(COMPLETION_SECONDS) + 2 * settings.server.start_seconds + 600 if settings.server else 1800,
    }


def warmup_steps(recipe: MethodRecipe, steps: int) -> int:
    return 0 if recipe.schedule == "constant" else math.ceil(recipe.warmup * steps)


@contextlib.contextmanager
def sharding_on_cpus() -> Iterator[None]:
    """Have accelerate shard over ranks without GPUs, too, where it takes data parallelism without a word."""
    made = AcceleratorState.__init__

    def make(self: Any, *given: Any, fsdp_plugin: Any = None, **more: Any) -> None:
        made(self, *given, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = make
    try:
        yield
    finally:
        AcceleratorState.__init__ = made


class MethodTrainer:
    """Mixin of the classes on TRL's trainers: the schedule's least rate, and what a method does between steps."""

    least_rate = 0.0  # of the learning rate, to which the schedule falls after the warm-up instead of to 0
    meter = Meter()  # `carry_out` gives it the run's
    args: Any  # TRL's, as is the next
    lr_scheduler: Any

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does; FSDP adds gradients up and gives log-probabilities in float32, and works on CPUs."""
        plugin = getattr(self.args, "fsdp_plugin_args", None)
        if not plugin:
            return super().create_accelerator_and_postprocess()  # type: ignore[misc]  # TRL's
        if self.args.bf16:
            plugin["mixed_precision_policy"] = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
            )
        with sharding_on_cpus():
            super().create_accelerator_and_postprocess()  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        made = self.lr_scheduler is not None
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]  # TRL's
        if not made and self.least_rate:
            least, warmup = self.least_rate, self.args.get_warmup_steps(num_training_steps)

            def raised(factor: Callable[[int], float]) -> Callable[[int], float]:
                return lambda step: factor(step) if step < warmup else least + (1 - least) * factor(step)

            scheduler.lr_lambdas = [raised(factor) for factor in scheduler.lr_lambdas]
        return scheduler

    def after_step(self, step: int) -> None:
        """Called on every rank when optimizer step `step` was taken, before anything of it is logged or saved."""

    def after_log(self, logs: dict[str, Any]) -> None:
        """Called on every rank when a step was logged, before it is saved. grad_norm in `logs` is before clipping."""

    def save_more(self, directory: Path) -> None:
        """Called on every rank when a state is saved: write to it what the method itself resumes from."""

    def load_more(self, directory: Path) -> None:
        """Called on every rank before training resumes from a state: read what `save_more` wrote."""


def mean_by_tokens(metrics: dict[str, list[float]], names: tuple[str, ...], tokens: list[int]) -> None:
    """Replace what was logged of each micro-batch by the mean over all tokens: micro-batches count by theirs."""
    for name in names:
        values = metrics.get(name)
        if values and len(values) == len(tokens) and sum(tokens):
            metrics[name] = [sum(v * n for v, n in zip(values, tokens, strict=True) if n) / sum(tokens)]


# ---------------------------------------------------------------- one run


def carry_out(trainer: Any, saving: Saving, run: TrainingRun, columns: dict[str, str]) -> list[dict] | None:
    """Train to the end from the newest usable state, then write checkpoints.json, trained.json and flops.parquet.

    provenance.json gets `step_seconds`, the wall time of every optimizer step: rollouts, updates and what a method does
    between steps, without start-up, checkpoints and what a kill undid.

    Returns the training log, a row per step, on rank 0 (None on others): columns maps names in the trainer's log to
    names in log.parquet, which the caller writes (`write_log`) with what it knows of each step. Raises Interrupted
    when the job's time limit came near or SIGTERM or SIGUSR1 asked for it, and the state is saved.
    """
    from transformers.trainer_callback import PrinterCallback

    out, saving.trainer, trainer.meter = run.out, trainer, saving.meter
    trainer.remove_callback(PrinterCallback)
    state = saving.ranks.from_first(usable_state(out / STATE) if saving.ranks.first else None)
    if state:
        trainer.load_more(state)
    if saving.ranks.first:
        written = json.loads((state / COMPLETE).read_text())["journals"] if state else {}
        for journal in saving.journals:
            journal.cut(written.get(journal.path.name, {"bytes": 0})["bytes"])
    with disk_errors(out, saving), stopping_on_signal(saving), contextlib.closing(saving.meter):
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    if saving.at < saving.total:
        raise Interrupted(f"saved after step {saving.at} of {saving.total}: {saving.stop}", saving.stop == TIME_LIMIT)
    if not saving.ranks.first:
        return None
    listing: list[dict[str, Any]] = [
        {"index": index, "step": step, "path": f"checkpoints/step-{step:06d}"}
        for index, step in enumerate(saving.steps, start=1)
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
    had_gradient = any(row["grad_norm"] for row in rows)
    if not had_gradient:
        print(
            "warning: no step had a gradient (all rewards of each group were equal); the model is what it started from",
            flush=True,
        )
    trained = check_frozen(run.start, out / listing[-1]["path"], run.trainable, had_gradient)
    write_atomically(out / "trained.json", json.dumps(trained, indent=1) + "\n")
    saving.flops.write_parquet(out / "flops.parquet")
    seconds = [row["seconds"] for row in saving.clock.rows()]
    write_atomically(out / STATE / CIRCUMSTANCES, json.dumps({"step_seconds": seconds}))
    write_atomically(out / "checkpoints.json", json.dumps(listing, indent=1) + "\n")
    return rows


def write_log(rows: list[dict], spent: list[dict], out: Path) -> None:
    """out/log.parquet: the trainer's log and, per step, what was spent on it.

    spent: questions asked; tokens that went through forward and backward passes; written: tokens sampled; flops.
    """
    table = pa.Table.from_pylist([row | more for row, more in zip(rows, spent, strict=True)])
    pq.write_table(table, out / "log.parquet", compression="zstd")


def step_flops(model: Any, tokens: int, written: int = 0, read: int = 0) -> float:
    """FLOPs of one step: forward 2 N a token, backward 2 N and 2 for each parameter that trains (scalpel/cost).

    tokens: in forward and backward passes; written and read: sampled, and read as prompts of samples. N counts all
    parameters; attention over earlier tokens and the recomputation of gradient checkpointing are left out.
    """
    n = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return float((4 * n + 2 * trained) * tokens + 2 * n * (written + read))
