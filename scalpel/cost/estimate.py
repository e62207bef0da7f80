"""What the unfinished part of a plan will cost: jobs, GPU-hours and bytes, each with the arithmetic behind it.

Every estimate is an `Amount`: a number and the text it was computed from, so that the printed line gives the
printed number. Nothing here imports torch, asks the network or looks at a GPU.

Conventions. N is the number of all parameters. A forward pass costs 2 N FLOPs a token, a backward pass 4 N
(2 N for the gradients of activations, 2 N for those of the weights that train), and gradient checkpointing
another forward pass. Attention over earlier tokens is left out: some 4 % at 2,000 tokens of a 7B model.

`COSTS` has a function for every stage that may reserve GPUs, by the name that scalpel/stages.py gives.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.artifact.step import Step
from scalpel.config.evaluation import FORMATS
from scalpel.config.scale import GPU, StageResources
from scalpel.cost.amount import HALF, Amount, number, product, total
from scalpel.cost.shape import BYTES, Shape, shape_of
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.methods.method import RowSizes
from scalpel.plan import Plan
from scalpel.stages import STAGES

# Peaks are the scale's (`gpu`): KL and tracing compute in float32, the structure of updates in float64.
DECOMPOSING = 0.01  # share of it that an eigendecomposition reaches: assumed
BUSY = 0.40  # share of the peak that training and reading prompts reach: assumed
WRITING = 0.10  # share of the peak that writing token by token reaches, by vLLM and full batches: assumed

TEMPLATE_TOKENS = 80  # system prompt (67) and role tags, with the OLMo-2 tokenizer
PROMPT_TOKENS = 150  # template and a mean problem of OpenR1-Math-220k (91 tokens less the tags)
KL_TOKENS = 355  # of a rendered MATH-500 problem (70) and solution (207): measured on half of it
FACT_TOKENS = 12  # of a sentence of known_1000: assumed
RESTORED = 0.3  # share of a forward pass that one restoration of causal tracing takes, with 32 layers: counted
# Questions of the public sets, and mean OLMo-2 tokens of one with its choices (with its answer for GSM8K, whose
# few-shot examples have one): measured on the public files; GPQA's is assumed, as are all others' (OTHER).
QUESTIONS = {
    "aime24": (30, 103), "math_500": (500, 70), "gsm8k": (1319, 159), "gpqa_diamond": (198, 200),
    "mmlu": (14042, 101), "mmlu_pro": (12032, 174), "ifeval": (541, 46),
    "aime25": (30, 169), "amc": (83, 90), "minerva": (272, 127), "olympiad": (674, 98), "arc_challenge": (1172, 64),
    "facts": (1209, 12),
}  # fmt: skip
OTHER = (1000, 150)
CHOICES = {"mmlu": 4, "mmlu_pro": 10, "choice": 4}  # answers that `formulation: cloze` reads one by one, by format
READ_ONLY = ("mmlu", "mmlu_pro", "choice")  # formats scored by log-likelihood
ROWS = ("data", "generate", "common")  # stages that write rows to train on
ALL_ROWS = 91_449  # CN-K12 rows of OpenR1-Math-220k, by the paper
PUBLIC_ROWS = {"Openr1-Math-46k-8192": 46_000}  # of another dataset of the hub, by its papers
ROW_TOKENS = 8192  # of a row where no cap is set: assumed
KEPT_ROWS = 69_132  # CN-K12 rows of OpenR1-Math-220k up to 4096 tokens, by the paper; our filter drops some more

CHARACTERS = 4  # bytes of text a token stands for
FETCHED_ROWS = 5e9  # bytes of a hub dataset of training rows: assumed
FETCHED_QUESTIONS = 1e8  # bytes of a hub file of evaluation questions: assumed


# ---------------------------------------------------------------- what goes through the model


class KeptRows(NamedTuple):
    """The kept training rows, and where their number comes from."""

    sizes: RowSizes
    source: str


class Task(NamedTuple):
    """One benchmark for one checkpoint, in tokens: read as prompts, and written."""

    name: str
    read: Amount
    written: Amount


@dataclass
class Known:
    """What is known of a plan before it runs; each thing is looked up once."""

    plan: Plan
    shapes: dict[str, tuple[Shape, str]] = field(default_factory=dict)
    rows: dict[str, KeptRows] = field(default_factory=dict)

    @property
    def gpu(self) -> GPU:
        return self.plan.config.scale.gpu

    def shape(self, step: Step) -> Shape:
        """Sizes of the base model behind a step."""
        base = base_of(step)
        if base.digest not in self.shapes:
            self.shapes[base.digest] = shape_of(base, self.plan.root)
        return self.shapes[base.digest][0]

    def kept(self, step: Step) -> KeptRows:
        """The rows that a step trains on or answers: exact when the data stage is finished, else an assumption."""
        data = step
        while data.stage != "data" and (data is step or not (data.stage in ROWS and data.finished(self.plan.root))):
            data = data.inputs.get("data") or data.inputs["own"]
        if data.digest not in self.rows:
            self.rows[data.digest] = kept_rows(data, self.plan.root)
        return self.rows[data.digest]

    def tasks(self, step: Step) -> list[Task]:
        """The benchmarks of an evaluate step."""
        found = []
        for name, task in step.recipe["tasks"].items():
            questions = step.inputs[f"questions/{name}"]
            count, tokens, form = (
                question_count(questions, self.plan.root),
                question_tokens(questions),
                form_of(questions),
            )
            count = min(task["limit"] or count, count)
            prompt = Amount.of(TEMPLATE_TOKENS) + product(task["shots"] + 1, tokens)
            passes = CHOICES[form] if form in CHOICES and task["formulation"] == "cloze" else 1
            written = product(count, task["samples"], task["max_new_tokens"], HALF)
            written = Amount.of(0) if form in READ_ONLY and task["formulation"] != "written" else written
            found.append(Task(name, product(count, passes, prompt), written))
        return found


def base_of(step: Step) -> Step:
    """The base model that a step's model comes from."""
    while step.stage != "base":
        step = step.inputs.get("base") or step.inputs["checkpoints"]
    return step


def kept_rows(data: Step, root: Path) -> KeptRows:
    """Rows of a data step: read from it when it is finished, else assumed from its source."""
    directory = root / data.directory
    if data.finished(root):
        with contextlib.suppress(OSError, pa.ArrowException):  # damaged: the stage that reads it says so
            table = pq.read_table(directory / "kept.parquet", columns=["tokens", "prompt_tokens"])
            means = [sum(column.to_pylist()) / max(1, len(table)) for column in table.columns]
            return KeptRows(RowSizes(len(table), means[0], means[1]), f"read from {directory / 'kept.parquet'}")
    if data.stage != "data":
        return kept_rows(data.inputs.get("data") or data.inputs["own"], root)
    most = data.recipe["filter"].get("max_prompt_tokens")
    prompt = min(PROMPT_TOKENS, most or PROMPT_TOKENS)
    if "toy" in data.inputs:
        rows = data.inputs["toy"].recipe["train_rows"]
        return KeptRows(RowSizes(rows, None, prompt), "the toy world's rows before the filter: an upper bound")
    if "path" in data.settings:
        count = parquet_rows(Path(data.settings["path"]))
        return KeptRows(
            RowSizes(count, None, prompt), f"rows of {data.settings['path']} before the filter: an upper bound"
        )
    repo = data.inputs["fetch"].recipe["repo"]
    enough = data.recipe["filter"].get("most_rows")
    if enough:
        return KeptRows(RowSizes(enough, None, prompt), "filter.most_rows: an upper bound")
    if repo.endswith("/OpenR1-Math-220k") and data.recipe["filter"]["source"] == "cn_k12":
        if data.recipe["filter"]["max_tokens"] is None:
            source = "the paper's count of CN-K12 rows: an upper bound"
            return KeptRows(RowSizes(ALL_ROWS, None, prompt), source)
        source = "the paper's count of CN-K12 rows up to 4096 tokens: an upper bound"
    elif (name := repo.rpartition("/")[2]) in PUBLIC_ROWS:
        return KeptRows(RowSizes(PUBLIC_ROWS[name], None, prompt), f"the papers' count of {repo}: an upper bound")
    else:
        source = f"assumed: {repo} is not fetched yet, so its rows are not known"
    return KeptRows(RowSizes(KEPT_ROWS, None, prompt), source)


def parquet_rows(path: Path) -> int:
    """Rows of a parquet file; UserError when it is none."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is no readable parquet file ({error}); replace it.") from None


def form_of(questions: Step) -> str:
    return questions.recipe["format"]


def public_name(questions: Step) -> str:
    """The public set whose size stands for this one's: of its own name, else the first of its format."""
    form = form_of(questions)
    return questions.name if questions.name in QUESTIONS else next((n for n, f in FORMATS.items() if f == form), "")


def question_count(questions: Step, root: Path) -> int:
    """Questions of a set: read from it when it is finished or local, else the toy world's or the public set's."""
    made = root / questions.directory / "questions.parquet"
    if made.is_file():
        return parquet_rows(made)
    if "toy" in questions.inputs:
        return questions.recipe.get("count") or questions.inputs["toy"].recipe.get(questions.recipe["toy"], 0)
    path = questions.settings.get("paths", {}).get("questions")
    if path and Path(path).suffix == ".parquet":
        return parquet_rows(Path(path))
    return QUESTIONS.get(public_name(questions), OTHER)[0]


def question_tokens(questions: Step) -> int:
    return QUESTIONS.get(public_name(questions), OTHER)[1]


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
        """GPU-hours when every job runs into its time limit, as often as it is expected to be queued again: what SLURM
        holds the budget for."""
        return self.limit * self.gpus * self.jobs * (1 + self.again)

    @property
    def again(self) -> int:
        """Times that a job is expected to be queued again: training alone goes on from where it was."""
        return math.ceil(self.longest / self.limit) - 1 if self.stage == "train" and self.longest > self.limit else 0


@dataclass(frozen=True)
class Cost:
    """The estimate of a plan. `finished` results cost nothing and are in no row."""

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


class Spent(NamedTuple):
    """What one step costs: hours on the GPUs its job holds, bytes that stay, bytes of state, files."""

    hours: Amount
    kept: Amount
    running: Amount = Amount.of(0)
    files: int = 10


def estimate(plan: Plan, digests: Collection[str] | None = None) -> Cost:
    """Cost of every step of the plan that has no manifest yet; an interrupted run is counted whole.

    digests: of the steps that are counted; None: all.
    """
    missing, known = plan.missing(), Known(plan)
    missing = missing if digests is None else [step for step in missing if step.digest in digests]
    rows: list[Row] = []
    tasks: dict[str, Task] = {}
    for stage in dict.fromkeys(step.stage for step in missing):
        steps = [step for step in missing if step.stage == stage]
        held = plan.resources_of_stage(stage)
        function = STAGES[stage].cost
        if function is None and held.gpus:
            raise UserError(f"resources.{stage}.gpus: stage {stage} uses no GPU; take them away.")
        if function is None:
            kept = total(_bytes(known, step) for step in steps)
            rows.append(_row(stage, "", len(steps), held, None, 0.0, kept))
            continue
        spent = [COSTS[function](known, step) for step in steps]
        if stage == "train":
            names = Counter(step.name for step in steps)
            rows += [
                _row(stage, name, 1, held, one.hours, one.hours.value, one.kept, one.running, one.files)
                for step, one in zip(steps, spent, strict=True)
                for name in [f"{step.name} ({base_of(step).name})" if names[step.name] > 1 else step.name]
            ]
            continue
        longest = max(one.hours.value for one in spent)
        hours, kept = total(one.hours for one in spent), total(one.kept for one in spent)
        rows.append(_row(stage, "", len(steps), held, hours, longest, kept, None, sum(one.files for one in spent)))
        if stage == "evaluate":
            tasks |= {task.name: task for step in steps for task in known.tasks(step)}
    return Cost(rows, list(tasks.values()), _assumptions(known, rows), len(plan.steps) - len(missing))


def _assumptions(known: Known, rows: list[Row]) -> list[str]:
    shapes = (
        f"N = {s.parameters:,} parameters ({number(s.parameters)}), {source}." for s, source in known.shapes.values()
    )
    found = list(dict.fromkeys(shapes))  # two bases may be one model with other edits
    for (count, tokens, prompt), source in known.rows.values():
        length = "exact" if tokens else f"{HALF} x the longest allowed"
        found.append(
            f"Kept training rows: {count:,} ({source}); tokens of a trace: {length}; "
            f"of a prompt: {number(prompt)}; of a completion: {HALF} x the longest allowed."
        )
    gpu = known.gpu
    if any(row.gpus for row in rows):
        found += [
            f"{gpu.name}: {number(gpu.bfloat16)} FLOP/s bfloat16, {number(gpu.float32)} float32. Share of it reached: "
            f"{BUSY} in training and reading, {WRITING} in writing token by token (vLLM, full batches; transformers' "
            "own sampling is several times slower).",
            "Left out: loading models, rewards, padding, attention, waiting in the queue, restarts.",
            "GPUs are counted as long as they are held: the server's while its ranks train, and the ranks' while it "
            "writes. Expect the truth within a factor of three; the first finished run says more.",
        ]
    return found


def _row(
    stage: str, name: str, jobs: int, held: StageResources, hours: Amount | None, longest: float, kept: Amount,
    running: Amount | None = None, files: int | None = None,
) -> Row:  # fmt: skip
    limit, files = held.runtime / 60, 10 * jobs if files is None else files
    hours = hours if held.gpus else None
    return Row(stage, name, jobs, held.gpus, hours, longest, limit, kept, running or Amount.of(0), files)


# ---------------------------------------------------------------- stages with GPU work


def _train(known: Known, step: Step) -> Spent:
    method = METHODS[step.recipe["method"]]
    recipe, settings, n = method.Recipe.of_identity(step.recipe), step.settings, known.shape(step).parameters
    trained = known.shape(step).trained(recipe.trainable)
    recomputed = 2 if settings["gradient_checkpointing"] else 0
    flops = product(6 + recomputed, n) if trained == n else product(4 + recomputed, n) + product(2, trained)
    training = settings["ranks"] * settings["nodes"]  # GPUs
    kept = product(recipe.checkpoints, n, BYTES[recipe.dtype])
    running = product(settings["keep_state"] + 1, method.state_bytes, n)
    work = method.work(recipe, known.kept(step).sizes)
    hours = product(work.trained, flops) / product(training, known.gpu.bfloat16, BUSY, 3600)
    if work.scored:
        hours = hours + product(work.scored, 2, n) / product(training, known.gpu.bfloat16, BUSY, 3600)
    if work.written:
        kept = kept + product(work.written, 2 * CHARACTERS)  # rollouts.parquet: text and ids
        server = settings["server"]
        writing = max(1, server["gpus"]) * max(1, server["nodes"]) if server else training  # a server may have none
        hours = hours + product(work.written, 2, n) / product(writing, known.gpu.bfloat16, WRITING, 3600)
    files = 12 * recipe.checkpoints + (settings["keep_state"] + 1) * (12 + 2 * training) + 10
    return Spent(hours, kept, running, files)


def _seconds(known: Known, step: Step, read: Amount, written: Amount) -> Amount:
    """On one GPU, which is all that one engine uses."""
    forward = product(2, known.shape(step).parameters)
    peak = known.gpu.bfloat16
    return product(forward, read) / product(peak, BUSY) + product(forward, written) / product(peak, WRITING)


def _evaluate(known: Known, step: Step) -> Spent:
    """One GPU works in each job: an engine holds one model."""
    count, benchmarks = len(step.recipe["checkpoints"]) or 1, known.tasks(step)  # no checkpoint: the base model
    read, written = (Amount.of(sum(getattr(task, what).value for task in benchmarks)) for what in ("read", "written"))
    hours = product(count, _seconds(known, step, read, written)) / 3600
    return Spent(hours, product(count, read + written, CHARACTERS))


def _generate(known: Known, step: Step) -> Spent:
    """Every kept question is answered `samples` times."""
    sizes = known.kept(step).sizes
    written = product(sizes.count, step.recipe["samples"], step.recipe["max_new_tokens"], HALF)
    read = product(sizes.count, sizes.prompt_tokens)
    return Spent(_seconds(known, step, read, written) / 3600, product(written, CHARACTERS))


def _checkpoints(step: Step) -> int:
    """How many checkpoints a train or given step has."""
    given = len(step.recipe.get("files", {})) or sum(role.startswith("fetch/") for role in step.inputs)
    return step.recipe["checkpoints"] if step.stage == "train" else given


def _kl(known: Known, step: Step) -> Spent:
    """The reference and every checkpoint read the same questions, in float32."""
    asked = question_count(step.inputs["questions"], known.plan.root)
    prompts, models = min(step.recipe["prompts"] or asked, asked), _checkpoints(step.inputs["checkpoints"]) + 1
    forward = product(models, prompts, KL_TOKENS, 2, known.shape(step).parameters)
    hours = forward / product(known.gpu.float32, BUSY, 3600)
    return Spent(hours, product(models, prompts, 48))  # six columns of 8 bytes


def _trace(known: Known, step: Step) -> Spent:
    """Every fact, noised copy, token and layer is a restoration, three times: MLP, attention, states; each runs on from
    its own token and layer alone."""
    asked = question_count(step.inputs["questions"], known.plan.root)
    facts, shape = min(step.recipe["facts"] or asked, asked), known.shape(step)
    passes = product(facts, step.recipe["samples"], FACT_TOKENS, shape.layers, 3)
    hours = product(passes, FACT_TOKENS, RESTORED, 2, shape.parameters) / product(known.gpu.float32, BUSY, 3600)
    return Spent(hours, product(facts, FACT_TOKENS, shape.layers, 3, 8))


def _structure(known: Known, step: Step) -> Spent:
    """Two products of a matrix with itself, of the weights and of the update, and two eigendecompositions of what comes
    out: 4 n^3 / 3 operations without vectors, 9 n^3 with them (Golub and Van Loan), n the smaller side."""
    models, parameters, side = (
        len(step.recipe["checkpoints"]) + 1,
        known.shape(step).parameters,
        known.shape(step).hidden,
    )
    products = product(models, 4, parameters, side)
    decomposed = product(models, parameters, 11, side)  # 11 n^3, of n^2 parameters at least
    seconds = products / product(known.gpu.float64, BUSY) + decomposed / product(known.gpu.float64, DECOMPOSING)
    matrices = product(known.shape(step).layers, 7)
    return Spent(seconds / 3600, product(models, matrices, 17, 8))  # columns of 8 bytes


def _audit(known: Known, step: Step) -> Spent:
    """Seconds on a tiny model; what is held is the time of a start."""
    return Spent(Amount.of(0.02), Amount.of(1e3))


COSTS: dict[str, Callable[[Known, Step], Spent]] = {
    "audit": _audit, "train": _train, "evaluate": _evaluate, "generate": _generate, "kl": _kl, "trace": _trace,
    "structure": _structure,
}  # fmt: skip


# ---------------------------------------------------------------- stages without


def _bytes(known: Known, step: Step) -> Amount:
    """What a step without GPU work writes."""
    if step.stage == "fetch" and step.recipe["type"] == "model" and "files" in step.recipe:
        return Amount.of(1e4)  # a chat template
    if step.stage == "base" or (step.stage == "fetch" and step.recipe["type"] == "model"):
        try:
            shape = known.shape(step) if step.stage == "base" else _fetched_shape(known, step)
        except UserError:
            return Amount.of(15e9)
        return product(shape.parameters, shape.bytes)
    if step.stage == "fetch":
        of_rows = any(other.inputs.get("fetch") is step for other in known.plan.steps.values() if other.stage == "data")
        return Amount.of(FETCHED_ROWS if of_rows else FETCHED_QUESTIONS)
    if step.stage == "toy":
        return product(step.recipe["train_rows"] + step.recipe["pretraining_samples"], 500)
    if step.stage == "questions":
        return Amount.of(FETCHED_QUESTIONS if any(role.startswith("fetch/") for role in step.inputs) else 1e6)
    if step.stage == "data":
        sizes = known.kept(step).sizes
        return product(
            sizes.count, sizes.tokens or product(step.recipe["filter"]["max_tokens"] or ROW_TOKENS, HALF), CHARACTERS
        )
    if step.stage == "order":
        return product(known.kept(step).sizes.count, step.recipe["epochs"], 24)  # three columns of 8 bytes
    if step.stage == "given":
        if any(role.startswith("fetch/") for role in step.inputs):
            return Amount.of(1e6)  # links to what was fetched
        return product(_checkpoints(step), known.shape(step).parameters, known.shape(step).bytes)
    return Amount.of(1e6)


def _fetched_shape(known: Known, step: Step) -> Shape:
    """Of a fetched model: of the base model made of it, or given as a checkpoint of one."""
    for other in known.plan.steps.values():
        if step in other.inputs.values():
            return known.shape(other)
    raise UserError(f"nothing is made of {step.name}")
