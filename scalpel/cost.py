"""What the unfinished part of a plan will cost: jobs, GPU-hours and bytes, each with the arithmetic behind it.

Every estimate is an `Amount`: a number and the text it was computed from, so that the printed line gives the
printed number. Nothing here imports torch, asks the network or looks at a GPU.

Conventions. N is the number of all parameters. A forward pass costs 2 N FLOPs a token, a backward pass 4 N
(2 N for the gradients of activations, 2 N for those of the weights that train), and gradient checkpointing
another forward pass. Attention over earlier tokens is left out: some 4 % at 2,000 tokens of a 7B model.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.artifact import MANIFEST, Step
from scalpel.config import PROJECTIONS, HubDataset, LocalModel, ParquetSource, StageResources, ToyModel, ToySource
from scalpel.errors import UserError
from scalpel.plan import Plan

PEAK = 989e12  # FLOP/s, dense bfloat16, H100 SXM (NVIDIA's data sheet)
PEAK_FLOAT32 = 67e12  # FLOP/s, float32 without TF32, H100 SXM; the KL stage computes in float32
BUSY = 0.40  # share of the peak that training and reading prompts reach: assumed
WRITING = 0.10  # share of the peak that writing token by token reaches, by vLLM and full batches: assumed
HALF = 0.5  # mean length of a trace or completion, as a share of the longest allowed: assumed

TEMPLATE_TOKENS = 80  # system prompt (67) and role tags, with the OLMo-2 tokenizer
PROMPT_TOKENS = 150  # template and a mean problem of OpenR1-Math-220k (91 tokens less the tags)
KL_TOKENS = 355  # of a rendered MATH-500 problem (70) and solution (207): measured on half of it
# Questions of the public sets, and mean OLMo-2 tokens of one with its choices (with its answer for GSM8K, whose
# few-shot examples have one): measured on the public files; GPQA's is assumed.
QUESTIONS = {
    "aime24": (30, 103), "math_500": (500, 70), "gsm8k": (1319, 159), "gpqa_diamond": (198, 200),
    "mmlu": (14042, 101), "mmlu_pro": (12032, 174), "ifeval": (541, 46),
}  # fmt: skip
CHOICES = {"mmlu": 4, "mmlu_pro": 10}  # answers that `formulation: cloze` reads one by one; letters need one pass
KEPT_ROWS = 69_132  # CN-K12 rows of OpenR1-Math-220k up to 4096 tokens, by the paper; our filter drops some more

STATE_BYTES = 16  # of each parameter, at most: float32 weight and two moments (12), bfloat16 model twice under ZeRO-2
CHARACTERS = 4  # bytes of text a token stands for
FETCHED_ROWS = 5e9  # bytes of a hub dataset of training rows: assumed
FETCHED_QUESTIONS = 1e8  # bytes of a hub file of evaluation questions: assumed
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


# ---------------------------------------------------------------- numbers that know where they come from


def number(value: float) -> str:
    """Exact below ten million; above, five significant digits as in 7.2986e9."""
    if float(value).is_integer() and abs(value) < 1e7:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e7:
        return f"{value:.5g}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


@dataclass(frozen=True)
class Amount:
    """A number and the arithmetic that gives it; `binds` is 0 for a sum, 1 for a product, 2 for a plain number."""

    value: float
    text: str
    binds: int = 2

    @classmethod
    def of(cls, value: float | Amount) -> Amount:
        return value if isinstance(value, Amount) else cls(float(value), number(value))

    def _inside(self, level: int) -> str:
        return self.text if self.binds >= level else f"({self.text})"

    def __add__(self, other: float | Amount) -> Amount:
        other = Amount.of(other)
        return Amount(self.value + other.value, f"{self.text} + {other.text}", 0)

    def __mul__(self, other: float | Amount) -> Amount:
        other = Amount.of(other)
        return Amount(self.value * other.value, f"{self._inside(1)} x {other._inside(1)}", 1)

    def __truediv__(self, other: float | Amount) -> Amount:
        other = Amount.of(other)
        return Amount(self.value / other.value, f"{self._inside(1)} / {other._inside(2)}", 1)


def product(*factors: float | Amount) -> Amount:
    """The factors that are not 1, multiplied."""
    found = [Amount.of(factor) for factor in factors]
    found = [factor for factor in found if factor.text != "1"] or [Amount.of(1)]
    total = found[0]
    for factor in found[1:]:
        total = total * factor
    return total


def total(parts: Iterable[Amount]) -> Amount:
    """The sum, equal parts counted instead of repeated."""
    alike: dict[str, list[Amount]] = {}
    for part in parts:
        alike.setdefault(part.text, []).append(part)
    counted = [product(len(found), found[0]) for found in alike.values()] or [Amount.of(0)]
    result = counted[0]
    for part in counted[1:]:
        result = result + part
    return result


# ---------------------------------------------------------------- the model's size


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like decoder; `query_key_norms` as in OLMo-2, whose norms span all heads."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    query_key_norms: bool
    bytes: int = 2  # of a stored parameter

    @classmethod
    def of_config(cls, config: dict) -> Shape:
        """Of a Hugging Face config.json; KeyError when a size is not in it."""
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            query_key_norms=config.get("model_type") in ("olmo2", "olmo3"),
            bytes=BYTES.get(config.get("dtype") or config.get("torch_dtype") or "", 2),
        )

    @property
    def projections(self) -> dict[str, int]:
        """Parameters of each projection of one layer."""
        queries, keys = self.heads * self.head_size * self.hidden, self.kv_heads * self.head_size * self.hidden
        mlp = self.hidden * self.intermediate
        return dict(zip(PROJECTIONS, (queries, keys, keys, queries, mlp, mlp, mlp), strict=True))

    @property
    def parameters(self) -> int:
        """N: embedding, lm_head unless tied, projections, two norms a layer, the last norm, query and key norms."""
        norms = 2 * self.hidden + (self.heads + self.kv_heads) * self.head_size * self.query_key_norms
        layer = sum(self.projections.values()) + norms
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    def trained(self, trainable: dict) -> int:
        """Parameters that a run's `trainable` leaves to train."""
        if trainable["only"]:
            head = self.vocabulary * self.hidden * trainable["also_lm_head"]
            return self.layers * sum(self.projections[name] for name in trainable["only"]) + head
        frozen = sum(self.projections[name] for name in ("gate_proj", "up_proj", "down_proj"))
        return self.parameters - frozen * len(trainable["freeze_mlp_layers"])


def _olmo2(hidden: int, layers: int, heads: int, intermediate: int) -> Shape:
    return Shape(hidden, intermediate, layers, heads, heads, hidden // heads, 100352, tied=False, query_key_norms=True)


KNOWN = {  # by the repository's name, -SFT, -DPO, -Instruct aside: the models' own config.json
    "allenai/OLMo-2-0425-1B": _olmo2(2048, 16, 16, 8192),
    "allenai/OLMo-2-1124-7B": _olmo2(4096, 32, 32, 11008),
    "allenai/OLMo-2-1124-13B": _olmo2(5120, 40, 40, 13824),
}


def shape_of(plan: Plan) -> tuple[Shape, str]:
    """The base model's sizes and where they were read; UserError when they are not known before it is fetched."""
    model = plan.config.scale.model
    places = [plan.root / plan.base.directory / "model"]
    places += [plan.root / step.directory / "files" for role, step in plan.base.inputs.items() if role == "fetch"]
    if isinstance(model, LocalModel):
        places.append(model.path)
    for place in places:
        if (place / "config.json").is_file():
            try:
                return Shape.of_config(json.loads((place / "config.json").read_text())), str(place / "config.json")
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(f"{place / 'config.json'} lacks the sizes of a decoder; replace the model.") from None
    if isinstance(model, ToyModel):
        toy = model.toy
        vocabulary = -(-toy.vocab_size // 64) * 64
        head = toy.hidden_size // toy.heads
        sizes = (toy.hidden_size, toy.intermediate_size, toy.layers, toy.heads, toy.heads, head, vocabulary)
        return Shape(*sizes, tied=False, query_key_norms=True, bytes=4), "model.toy of the scale"
    if isinstance(model, LocalModel):
        raise UserError(f"{model.path} holds no config.json; point model.path at a saved model.")
    stem = model.repo
    for ending in ("-Instruct", "-DPO", "-SFT"):
        stem = stem.removesuffix(ending)
    if stem not in KNOWN:
        raise UserError(f"the size of {model.repo} is not known before it is fetched; run `make fetch` first.")
    return KNOWN[stem], "scalpel/cost.py's table; the model is not fetched yet"


# ---------------------------------------------------------------- what goes through the model


@dataclass(frozen=True)
class Rows:
    """The kept training rows: how many, their mean tokens (None: not known), and where that comes from."""

    count: int
    tokens: float | None
    prompt_tokens: float
    source: str


def kept_rows(plan: Plan) -> Rows:
    """Exact when the data stage is finished, else an assumption that says so."""
    scale, source = plan.config.scale, plan.config.scale.source
    prompt = min(PROMPT_TOKENS, scale.filter.max_prompt_tokens or PROMPT_TOKENS)
    directory = plan.root / plan.data.directory
    if (directory / MANIFEST).is_file():
        table = pq.read_table(directory / "kept.parquet", columns=["tokens", "prompt_tokens"])
        means = [sum(column.to_pylist()) / max(1, len(table)) for column in table.columns]
        return Rows(len(table), means[0], means[1], f"read from {directory / 'kept.parquet'}")
    if isinstance(source, ToySource):
        return Rows(scale.world.train_rows, None, prompt, "the toy world's rows before the filter: an upper bound")
    if isinstance(source, ParquetSource):
        count = _parquet_rows([source.path])
        return Rows(count, None, prompt, f"rows of {source.path} before the filter: an upper bound")
    if source.repo.endswith("/OpenR1-Math-220k") and scale.filter.source == "cn_k12":
        return Rows(KEPT_ROWS, None, prompt, "the paper's count of CN-K12 rows up to 4096 tokens: an upper bound")
    return Rows(KEPT_ROWS, None, prompt, f"assumed: {source.repo} is not fetched yet, so its rows are not known")


def _parquet_rows(paths: Iterable[Path]) -> int:
    try:
        return sum(pq.read_metadata(path).num_rows for path in paths)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"a data file is no readable parquet file ({error}); replace it.") from None


@dataclass(frozen=True)
class Task:
    """One benchmark for one checkpoint, in tokens: read as prompts, and written."""

    name: str
    read: Amount
    written: Amount


def tasks(plan: Plan) -> list[Task]:
    found = []
    for name, task in plan.config.scale.evaluation.tasks.items():
        count = questions(plan, name) if task.limit is None else min(task.limit, questions(plan, name))
        prompt = Amount.of(TEMPLATE_TOKENS) + product(task.shots + 1, QUESTIONS[name][1])
        passes = CHOICES[name] if name in CHOICES and task.formulation == "cloze" else 1
        written = Amount.of(0) if name in CHOICES else product(count, task.samples, task.max_new_tokens, HALF)
        found.append(Task(name, product(count, passes, prompt), written))
    return found


def questions(plan: Plan, name: str) -> int:
    """Questions of one evaluation set: the toy world's, those of a local file, else the public set's."""
    scale = plan.config.scale
    if scale.evaluation_files.kind == "toy":
        return getattr(scale.world, name, 0)
    where = scale.evaluation_files.files.get(name)
    return _parquet_rows([where]) if isinstance(where, Path) else QUESTIONS[name][0]


# ---------------------------------------------------------------- the estimate


@dataclass(frozen=True)
class Row:
    """One line of the table: a stage, or one training run.

    hours: of all its jobs, one after the other, on the GPUs each holds; None without GPUs. longest: of its
    longest job. limit: hours after which SLURM ends a job. kept: bytes that stay. running: bytes of resumable
    state, removed at the end.
    """

    stage: str
    name: str
    jobs: int
    gpus: int  # held by each job
    hours: Amount | None
    longest: float
    limit: float
    kept: Amount
    running: Amount
    files: int

    @property
    def gpu_hours(self) -> float:
        return self.hours.value * self.gpus if self.hours else 0.0

    @property
    def reserved(self) -> float:
        """GPU-hours when every job runs into its time limit: what SLURM holds the budget for."""
        return self.limit * self.gpus * self.jobs


@dataclass(frozen=True)
class Cost:
    """The estimate of a plan. `finished` results cost nothing and are in no row."""

    parameters: int
    rows: list[Row]
    tasks: list[Task]
    assumptions: list[str]
    finished: int

    @property
    def gpu_hours(self) -> float:
        return sum(row.gpu_hours for row in self.rows)

    @property
    def reserved(self) -> float:
        return sum(row.reserved for row in self.rows)

    @property
    def kept(self) -> float:
        return sum(row.kept.value for row in self.rows)

    @property
    def peak(self) -> float:
        """Bytes when all training runs hold their states at the same time."""
        return self.kept + sum(row.running.value for row in self.rows)

    @property
    def least(self) -> float:
        """Bytes when one training run is made after the other."""
        return self.kept + max((row.running.value for row in self.rows), default=0.0)

    @property
    def files(self) -> int:
        return sum(row.files for row in self.rows)


def estimate(plan: Plan, shape: Shape, source: str = "given") -> Cost:
    """Cost of every step of the plan that has no manifest yet; an interrupted run is counted whole."""
    missing = [step for step in plan.steps.values() if not (plan.root / step.directory / MANIFEST).is_file()]
    rows, data, benchmarks = [], kept_rows(plan), tasks(plan)
    for stage in dict.fromkeys(step.stage for step in missing):
        steps = [step for step in missing if step.stage == stage]
        held = plan.resources_of_stage(stage)
        if stage == "train":
            rows += [_train(step, held, shape, data) for step in steps]
        elif stage == "evaluate":
            rows.append(_evaluate(steps, held, shape, benchmarks))
        elif stage == "kl":
            asked = questions(plan, "math_500")
            rows.append(_kl(steps, held, shape, min(plan.config.scale.kl.prompts or asked, asked)))
        else:
            kept = total(_bytes(plan, step, shape, data) for step in steps)
            rows.append(_row(stage, "", len(steps), held, None, 0.0, kept))
    length = "exact" if data.tokens else f"{HALF} x the longest allowed"
    assumptions = [
        f"N = {shape.parameters:,} parameters ({number(shape.parameters)}), {source}.",
        f"Kept training rows: {data.count:,} ({data.source}); tokens of a trace: {length}; "
        f"of a prompt: {number(data.prompt_tokens)}; of a completion: {HALF} x the longest allowed.",
    ]
    if any(row.gpus for row in rows):
        assumptions += [
            f"H100 SXM: {number(PEAK)} FLOP/s bfloat16, {number(PEAK_FLOAT32)} float32. Share of it reached: {BUSY} in "
            f"training and reading, {WRITING} in writing token by token (vLLM, full batches; transformers' own "
            "sampling is several times slower).",
            "Left out: loading models, rewards, padding, attention, waiting in the queue, restarts.",
            "GPUs are counted as long as they are held: the server's while its ranks train, and the ranks' while it "
            "writes. Expect the truth within a factor of three; the first finished run says more.",
        ]
    return Cost(shape.parameters, rows, benchmarks, assumptions, len(plan.steps) - len(missing))


def _row(
    stage: str, name: str, jobs: int, held: StageResources, hours: Amount | None, longest: float, kept: Amount,
    running: Amount | None = None, files: int | None = None,
) -> Row:  # fmt: skip
    limit, files = held.runtime / 60, 10 * jobs if files is None else files
    hours = hours if held.gpus else None
    return Row(stage, name, jobs, held.gpus, hours, longest, limit, kept, running or Amount.of(0), files)


def _train(step: Step, held: StageResources, shape: Shape, data: Rows) -> Row:
    recipe, settings, n = step.recipe, step.settings, shape.parameters
    trained = shape.trained(recipe["trainable"])
    recomputed = 2 if settings["gradient_checkpointing"] else 0
    flops = product(6 + recomputed, n) if trained == n else product(4 + recomputed, n) + product(2, trained)
    training = settings["ranks"] * settings["nodes"]  # GPUs
    kept = product(recipe["checkpoints"], n, BYTES[recipe["dtype"]])
    running = product(settings["keep_state"] + 1, STATE_BYTES, n)
    if recipe["method"] == "grpo":
        completions = product(recipe["steps"], recipe["questions_per_step"], recipe["generations"])
        written = product(recipe["max_completion_tokens"], HALF)
        tokens = product(completions, Amount.of(data.prompt_tokens) + written)
        kept = kept + product(completions, written, 2 * CHARACTERS)  # rollouts.parquet: text and ids
        server = settings["server"]
        writing = server["gpus"] * max(1, server["nodes"]) if server else training
        generation = product(completions, written, 2, n) / product(writing, PEAK, WRITING, 3600)
    else:
        mean = Amount.of(data.tokens) if data.tokens else product(recipe["max_tokens"], HALF)
        per_step = {
            "sequences": product(recipe["sequences_per_step"], mean),
            "questions": product(recipe["questions_per_step"], mean),
            "tokens": Amount.of(recipe["tokens_per_step"]),
        }[recipe["matching"]]
        steps, epochs = recipe["steps"], recipe["epochs"]
        tokens = product(steps, per_step) if steps else product(data.count, epochs, mean)
        generation = None
    hours = product(tokens, flops) / product(training, PEAK, BUSY, 3600)
    if generation:
        hours = hours + generation
    files = 12 * recipe["checkpoints"] + (settings["keep_state"] + 1) * (12 + 2 * training) + 10
    return _row("train", step.name, 1, held, hours, hours.value, kept, running, files)


def _evaluate(steps: list[Step], held: StageResources, shape: Shape, benchmarks: list[Task]) -> Row:
    """One GPU works in each job: the engine of scalpel/evaluation holds one model."""
    counts = [len(step.recipe["checkpoints"]) or 1 for step in steps]  # none: the base model
    read, written = (Amount.of(sum(getattr(task, what).value for task in benchmarks)) for what in ("read", "written"))
    forward = product(2, shape.parameters)
    seconds = product(forward, read) / product(PEAK, BUSY) + product(forward, written) / product(PEAK, WRITING)
    hours = product(sum(counts), seconds) / 3600
    kept = product(sum(counts), read + written, CHARACTERS)
    return _row("evaluate", "", len(steps), held, hours, hours.value * max(counts) / sum(counts), kept)


def _kl(steps: list[Step], held: StageResources, shape: Shape, prompts: int) -> Row:
    """The base model and every checkpoint read the same questions, in float32."""
    counts = [step.inputs["train"].recipe["checkpoints"] + 1 for step in steps]
    forward = product(sum(counts), prompts, KL_TOKENS, 2, shape.parameters)
    hours = forward / product(PEAK_FLOAT32, BUSY, 3600)
    kept = product(sum(counts), prompts, 48)  # six columns of 8 bytes
    return _row("kl", "", len(steps), held, hours, hours.value * max(counts) / sum(counts), kept)


def _bytes(plan: Plan, step: Step, shape: Shape, data: Rows) -> Amount:
    """What a step without GPU work writes."""
    scale = plan.config.scale
    if step.stage == "base" or (step.stage == "fetch" and step.recipe["type"] == "model"):
        return product(shape.parameters, shape.bytes)
    if step.stage == "fetch":
        return Amount.of(FETCHED_ROWS if step.name == "training_rows" else FETCHED_QUESTIONS)
    if step.stage == "toy":
        return product(scale.world.train_rows + scale.world.pretraining_samples, 500)
    if step.stage == "evaluation_data":
        hub = [where for where in scale.evaluation_files.files.values() if isinstance(where, HubDataset)]
        return product(max(1, len(hub)), FETCHED_QUESTIONS if hub else 1e6)
    if step.stage == "data":
        return product(data.count, data.tokens or product(scale.filter.max_tokens, HALF), CHARACTERS)
    if step.stage == "order":
        return product(data.count, scale.order.epochs, 24)  # three columns of 8 bytes
    return Amount.of(1e6)


# ---------------------------------------------------------------- showing it


def size(value: float) -> str:
    """Bytes for people: 292 GB (10^9)."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e3:.0f} kB"


def render(cost: Cost) -> str:
    """The table with its totals, the assumptions, and the arithmetic of every row."""
    if not cost.rows:
        return f"Nothing to pay for: all {cost.finished} results are finished."
    on_gpus = any(row.gpus for row in cost.rows)
    head = ["stage", "run", "jobs", "GPUs", "longest job", "its limit", "GPU-hours", "at the limits", "stays", "state"]
    shown = []
    for stage in dict.fromkeys(row.stage for row in cost.rows):
        of_stage = [row for row in cost.rows if row.stage == stage]
        shown += map(_cells, of_stage)
        if len(of_stage) > 1:
            shown.append(_sum(f"{stage}, all", of_stage))
    shown.append(_sum("total", cost.rows))
    if not on_gpus:
        head, *shown = ([*cells[:3], *cells[8:]] for cells in (head, *shown))
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    text = [_line(cells, widths) for cells in (head, ["-" * width for width in widths], *shown)]
    text.append("")
    if on_gpus:
        text += _wrapped(
            f"About {cost.gpu_hours:,.0f} GPU-hours. If every job ran into its time limit, as SLURM reserves it: "
            f"{cost.reserved:,.0f}."
        )
    text += _wrapped(
        f"On disk {size(cost.kept)} stay; up to {size(cost.peak)} while all training runs go on at once "
        f"({size(cost.least)} one after the other). Resumable state is removed when its run ends."
    )
    if cost.finished:
        text.append(f"{cost.finished} results are finished and not counted.")
    text += ["", "Assumptions"]
    for sentence in cost.assumptions:
        text += _wrapped(sentence, "  - ")
    text += ["", "Arithmetic of each row"]
    for what, runs in _arithmetic(cost.rows).items():
        text += _wrapped(f"{', '.join(runs)}: {what}", "  ")
    if on_gpus and any(row.stage == "evaluate" for row in cost.rows):
        text += ["", "Tokens of one checkpoint's evaluation: questions x tokens"]
        for task in cost.tasks:
            written = f"; written {task.written.text} = {number(task.written.value)}" if task.written.value else ""
            text.append(f"  {task.name}: read {task.read.text} = {number(task.read.value)}{written}")
    return "\n".join(text)


def _arithmetic(rows: list[Row]) -> dict[str, list[str]]:
    """Lines of arithmetic, each with the rows it holds for."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        label = f"{row.stage} {row.name}".strip()
        if row.hours:
            hours = number(round(row.hours.value, 4))
            gpu_hours = number(round(row.gpu_hours, 3))
            lines[f"hours = {row.hours.text} = {hours}; GPU-hours = {hours} x {row.gpus} = {gpu_hours}"] = [label]
    for what in ("kept", "running"):
        for row in rows:
            amount = getattr(row, what)
            if amount.value:
                named = "bytes that stay" if what == "kept" else "bytes of state"
                line = f"{named} = {amount.text} = {number(amount.value)}"
                lines.setdefault(line, []).append(f"{row.stage} {row.name}".strip())
    return lines


def _wrapped(text: str, lead: str = "") -> list[str]:
    return textwrap.wrap(
        text, 110, initial_indent=lead, subsequent_indent=" " * (len(lead) + 2 * bool(lead)), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _line(cells: list[str], widths: list[int]) -> str:
    """Two columns of names, then numbers."""
    names = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*names, *numbers]).rstrip()


def _cells(row: Row) -> list[str]:
    cells = [row.stage, row.name, str(row.jobs), str(row.gpus or "-")]
    if row.hours:
        cells += [f"{row.longest:.2f} h", f"{row.limit:g} h", f"{row.gpu_hours:,.1f}", f"{row.reserved:,.0f}"]
    else:
        cells += ["-", f"{row.limit:g} h", "-", "-"]
    return [*cells, size(row.kept.value), size(row.running.value) if row.running.value else "-"]


def _sum(label: str, rows: list[Row]) -> list[str]:
    hours = [f"{sum(r.gpu_hours for r in rows):,.1f}", f"{sum(r.reserved for r in rows):,.0f}"]
    running = sum(r.running.value for r in rows)
    bytes_ = [size(sum(r.kept.value for r in rows)), size(running) if running else "-"]
    return [label, "", str(sum(r.jobs for r in rows)), "", "", "", *hours, *bytes_]
