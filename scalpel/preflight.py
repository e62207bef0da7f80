"""Whether a plan can run here, found out before anything is spent: one sentence each, with what to do.

`findings` is what `make preflight` prints. `site_refusals` asks SLURM whether it would take the plan's jobs.
`health` looks at the GPUs of this node; the launcher calls it at the start of each GPU job.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.markers import InvalidMarker, Marker

from scalpel.artifact import MANIFEST, ROOT
from scalpel.config import Site, StageResources
from scalpel.cost import Cost, size
from scalpel.launch.slurm import ask, seconds_of
from scalpel.plan import Plan

DRIVER = {12: 525, 13: 580}  # first driver branch of each CUDA major version (CUDA's release notes)
NETWORK_SECONDS = 5.0
COMMAND_SECONDS = 30.0  # that nvidia-smi or sbatch may take
IMPORT_SECONDS = 300.0  # that importing torch may take from a cold network disk
PRODUCT_SECONDS = 60  # that the product on all GPUs may take
SIDE = 2048  # of the matrices multiplied in `health`
NAMED = 6  # items of a list that a sentence names
OK, WARNING, ERROR = "ok", "warning", "error"


class Finding(NamedTuple):
    name: str
    level: str  # ok, warning or error
    sentence: str


def findings(plan: Plan, cost: Cost | None, site: Site, slurm: bool | None) -> Iterator[Finding]:
    """Everything that is checked; `slurm` None: where sbatch is on PATH and the plan has GPU jobs.

    cost: of the same plan; None when it could not be estimated.
    """
    on_gpus = bool(gpu_stages(plan))
    yield environment(on_gpus, ROOT / "envs")
    if cost:
        yield from disk(plan.root, cost)
        yield from time_limits(cost)
    yield reachable(plan, os.environ)
    if on_gpus:
        yield from layout(plan)
        yield gpus(most=max(plan.resources_of_stage(stage).gpus for stage in gpu_stages(plan)))
    if slurm or (slurm is None and on_gpus and shutil.which("sbatch")):
        refusals = site_refusals(plan, site)
        for sentence in refusals:
            yield Finding("SLURM", ERROR, sentence)
        if not refusals:
            yield Finding(
                "SLURM", OK, f"sbatch --test-only takes all {len(job_shapes(plan))} kinds of job of the plan."
            )
    elif on_gpus:
        why = "--no-slurm was given" if slurm is False else "sbatch is not on PATH; run this on the login node"
        yield Finding("SLURM", WARNING, f"Not asked whether SLURM takes the jobs: {why}.")


def missing(plan: Plan) -> list:
    """Steps without a manifest."""
    return [step for step in plan.steps.values() if not (plan.root / step.directory / MANIFEST).is_file()]


def gpu_stages(plan: Plan) -> list[str]:
    """Stages of unfinished steps that need GPUs."""
    return [s for s in dict.fromkeys(step.stage for step in missing(plan)) if plan.resources_of_stage(s).gpus]


def some(items: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more


# ---------------------------------------------------------------- packages


def environment(on_gpus: bool, locks: Path) -> Finding:
    """Installed packages against the lock this plan needs: gpu.lock, which holds all of laptop.lock, for GPU jobs."""
    name = "gpu.lock" if on_gpus and (locks / "gpu.lock").is_file() else "laptop.lock"
    pins = {}
    for file in ("torch.lock", name):
        pins |= read_pins((locks / file).read_text()) if (locks / file).is_file() else {}
    absent, other = [], []
    for package, version in pins.items():
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            absent.append(package)
            continue
        if installed.split("+")[0] != version.split("+")[0]:  # 2.13.0+cpu is a build of 2.13.0
            other.append(f"{package} {installed} for {version}")
    if not absent and not other:
        return Finding("packages", OK, f"All {len(pins)} packages are those of envs/{name}.")
    parts = [f"{len(absent)} of its {len(pins)} packages are not installed ({some(absent)})"] if absent else []
    parts += [f"{len(other)} have another version ({some(other)})"] if other else []
    remedy = f"run `make {'setup-gpu' if name == 'gpu.lock' else 'setup'}`"
    return Finding("packages", ERROR if absent else WARNING, f"envs/{name}: {'; '.join(parts)}; {remedy}.")


def read_pins(lock: str) -> dict[str, str]:
    """Name -> version of the pins that hold on this machine and Python."""
    pins = {}
    for line in lock.splitlines():
        match = re.match(r"([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==([^\s;\\]+)\s*(?:;([^\\]*))?", line)
        if not match:
            continue
        name, version, marker = match.groups()
        try:
            holds = not marker or Marker(marker.strip()).evaluate()
        except InvalidMarker:
            holds = True
        if holds:
            pins[name] = version
    return pins


# ---------------------------------------------------------------- disk and time


def disk(root: Path, cost: Cost) -> Iterator[Finding]:
    """Free bytes and files of the disk of results/, against the plan's."""
    place = root / "results"
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    quota = "A quota is not seen from here."
    if free < cost.least:
        sentence = (
            f"{size(free)} are free at results/, {size(cost.least)} are needed even with one run after the other; "
        )
        yield Finding("disk", ERROR, sentence + "free some or make results a link to a larger disk.")
    elif free < cost.peak:
        sentence = f"{size(free)} are free at results/, enough for one training run after the other but not for all at "
        yield Finding(
            "disk", WARNING, f"{sentence}once ({size(cost.peak)}); start snakemake with fewer --jobs. {quota}"
        )
    else:
        yield Finding("disk", OK, f"{size(free)} are free at results/, at most {size(cost.peak)} are needed. {quota}")
    state = os.statvfs(place)
    if state.f_files and state.f_favail < cost.files:
        sentence = f"{state.f_favail:,} more files fit on the disk of results/, some {cost.files:,} are needed; "
        yield Finding("files", ERROR, sentence + "remove old results or use another disk.")
    else:
        left = f"{state.f_favail:,} more files fit" if state.f_files else "The disk sets no limit"
        yield Finding("files", OK, f"{left}; some {cost.files:,} are needed.")


def time_limits(cost: Cost) -> Iterator[Finding]:
    """Jobs whose estimate exceeds the time they may run."""
    for row in cost.rows:
        if row.hours and row.longest > row.limit:
            rest = (
                f"it will be queued again some {int(row.longest / row.limit)} times"
                if row.stage == "train"
                else "its jobs begin anew when they are ended: raise it, or `evaluation_shards`"
            )
            label = f"{row.stage} {row.name}".strip()
            yield Finding(
                "time limit",
                WARNING,
                f"{label} is estimated at {row.longest:.1f} h a job and may run {row.limit:g} h "
                f"(resources.{row.stage}.runtime); {rest}.",
            )


# ---------------------------------------------------------------- what must be fetched


def reachable(plan: Plan, environ: Mapping[str, str]) -> Finding:
    """Whether what is still to be fetched can be had from here."""
    wanted = [step for step in missing(plan) if step.stage == "fetch"]
    if not wanted:
        return Finding("model, data", OK, "Nothing is left to fetch: all of it lies in results/ or in local files.")
    names = some(sorted({step.recipe["repo"] for step in wanted}))
    offline = next((k for k in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if environ.get(k, "").upper() in TRUE), None)
    if offline:
        return Finding("model, data", ERROR, f"{offline} is set, but {names} are not fetched yet; unset it.")
    endpoint = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=NETWORK_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code == 407:
            return Finding(
                "model, data", ERROR, f"{endpoint} answers with status {error.code}; {names} cannot be had now."
            )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Finding(
            "model, data",
            ERROR,
            f"{endpoint} is not reached from here ({reason}), and {names} are not fetched yet; run `make fetch` on a "
            "node with network, such as the login node, or give local files.",
        )
    gated = " Idavidrein/gpqa is gated: accept its terms and log in first." if "Idavidrein/gpqa" in names else ""
    return Finding(
        "model, data",
        OK,
        f"{endpoint} is reached from here; run `make fetch` here before the jobs, for compute nodes often have no "
        f"network ({names}).{gated}",
    )


TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its switches


# ---------------------------------------------------------------- GPUs


class GPU(NamedTuple):
    index: str
    name: str
    memory: int | None  # MiB
    driver: str
    uncorrectable: int | None  # ECC errors since the driver was loaded; None: not counted


def nvidia_smi() -> tuple[list[GPU], str | None]:
    """The GPUs that nvidia-smi sees, and its complaint when it fails."""
    fields = "index,name,memory.total,driver_version,ecc.errors.uncorrected.volatile.total"
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi gave no answer in {COMMAND_SECONDS:.0f} s"
    except OSError as error:
        return [], f"nvidia-smi does not start ({error.strerror})"
    found, other = [], []
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) >= 5 and cells[0].isdigit():
            whole = lambda text: int(text) if text.isdigit() else None  # noqa: E731 ([N/A], [Not Supported])
            name = ", ".join(cells[1:-3])
            found.append(GPU(cells[0], name, whole(cells[-3]), cells[-2], whole(cells[-1])))
        elif line.strip():
            other.append(line.strip())
    if done.returncode or other or not found:
        said = " ".join([*other, *done.stderr.split("\n")]).strip() or "no GPU"
        return found, f"nvidia-smi says: {said}"
    return found, None


def ecc_problems(found: list[GPU], node: str) -> list[str]:
    return [
        f"GPU {gpu.index} of node {node} counts {gpu.uncorrectable} uncorrectable memory errors; "
        "have it reset or leave the node out (`--exclude`)."
        for gpu in found
        if gpu.uncorrectable
    ]


def gpus(most: int) -> Finding:
    """The GPUs of this node; `most`: what the largest job asks for."""
    if not shutil.which("nvidia-smi"):
        return Finding(
            "GPUs",
            OK,
            "This node has none to look at (no nvidia-smi); every GPU job checks those of its own node when it starts.",
        )
    found, complaint = nvidia_smi()
    node = platform.node()
    if complaint:
        return Finding("GPUs", ERROR, f"{complaint} (node {node}).")
    problems = ecc_problems(found, node)
    if problems:
        return Finding("GPUs", ERROR, " ".join(problems))
    import torch

    cuda = torch.version.cuda
    least = DRIVER.get(int(cuda.split(".")[0]), max(DRIVER.values())) if cuda else min(DRIVER.values())
    old = sorted(
        {gpu.driver for gpu in found if not gpu.driver.split(".")[0].isdigit() or int(gpu.driver.split(".")[0]) < least}
    )
    names = ", ".join(
        f"{sum(gpu.name == name for gpu in found)} x {name}" for name in dict.fromkeys(g.name for g in found)
    )
    if old:
        need = f"torch's CUDA {cuda}" if cuda else "CUDA 12"
        return Finding("GPUs", ERROR, f"{names}: driver {old[0]} is too old for {need}; {least} or newer is needed.")
    if not cuda:
        return Finding(
            "GPUs", WARNING, f"{names}, but torch {torch.__version__} is a build without CUDA; run `make setup-gpu`."
        )
    if not torch.cuda.is_available():
        return Finding(
            "GPUs", ERROR, f"{names}, but torch {torch.__version__} cannot use them; compare driver and CUDA {cuda}."
        )
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    sentence = f"{names}, driver {found[0].driver}, CUDA {cuda}, NCCL {nccl}"
    if len(found) < most:
        return Finding("GPUs", WARNING, f"{sentence}; jobs ask for {most} GPUs, more than this node has.")
    return Finding("GPUs", OK, f"{sentence}.")


def layout(plan: Plan) -> Iterator[Finding]:
    """Whether the processes of a training run fit the GPUs its job asks for."""
    settings, held = plan.config.scale.train_settings, plan.resources_of_stage("train")
    if not held.gpus or settings.nodes > 1 or (settings.server and settings.server.nodes):
        return
    server = settings.server.gpus if settings.server else 0
    used = settings.ranks + server
    parts = f"{settings.ranks} for ranks and {server} for the server"
    if used > held.gpus:
        sentence = (
            f"train_settings uses {used} GPUs ({parts}), but resources.train.gpus is {held.gpus}; mend one of them."
        )
        yield Finding("GPU layout", ERROR, sentence)
    elif used < held.gpus:
        sentence = (
            f"resources.train.gpus is {held.gpus}, train_settings uses {used} ({parts}); the others idle and are "
        )
        yield Finding("GPU layout", WARNING, sentence + "paid for: raise train_settings.ranks or lower the resource.")


def health(expected_gpus: int) -> list[str]:
    """Problems of this node's GPUs, a sentence each, empty when there are none; with 0 expected nothing is looked at.

    The product of two matrices is made on every device in a process of its own, because a device that hangs
    cannot be interrupted.
    """
    if not expected_gpus:
        return []
    node = platform.node()
    if not shutil.which("nvidia-smi"):
        return [f"nvidia-smi is not on PATH of node {node}."]
    found, complaint = nvidia_smi()
    problems = [f"{complaint} (node {node})."] if complaint else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(any(gpu.index == index for gpu in found) for index in visible):
        found = [gpu for gpu in found if gpu.index in visible]  # others of a shared node are not ours to judge
    if len(found) < expected_gpus:
        problems.append(f"node {node} shows {len(found)} GPUs, not the {expected_gpus} of the job.")
    return (problems + ecc_problems(found, node)) or products(node)


def products(node: str) -> list[str]:
    """`product_problems` of all CUDA devices, in a child with time limits."""
    child = subprocess.Popen(
        [sys.executable, "-m", "scalpel.preflight"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        out, errors = child.communicate(timeout=IMPORT_SECONDS + PRODUCT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()  # and not waited for: a process that hangs in the driver does not end
        return [f"trying the GPUs of node {node} took more than {IMPORT_SECONDS + PRODUCT_SECONDS:.0f} s."]
    if child.returncode == -signal.SIGALRM:
        return [f"a GPU of node {node} gave no product of two matrices in {PRODUCT_SECONDS} s."]
    if child.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        return [f"the GPUs of node {node} could not be tried: {last}."]
    return [f"{problem} (node {node})." for problem in json.loads(out.splitlines()[-1])]


def product_problems(devices: list[str]) -> list[str]:
    """Multiply the same bfloat16 matrices on every device; compare with float32 on the CPU and with each other."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=generator).bfloat16() for _ in range(2))
    expected = left.float() @ right.float()
    tolerance = 0.02 * expected.abs().max()  # bfloat16 keeps 1 part in 256, and cuBLAS may add partial sums in it
    problems, results = [], {}
    for device in devices:
        try:
            result = (left.to(device) @ right.to(device)).float().cpu()
        except RuntimeError as error:
            problems.append(f"{device} fails: {str(error).strip().splitlines()[0]}")
            continue
        off = (result - expected).abs().max()
        if not off <= tolerance:  # NaN is not
            problems.append(f"{device} multiplies wrongly: off by {off:.3g} where {tolerance:.3g} is allowed")
        kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
        first, reference = results.setdefault(kind, (device, result))
        if not torch.equal(result, reference):
            problems.append(f"{device} and {first}, both {kind}, give different products")
    return problems


# ---------------------------------------------------------------- SLURM


def job_shapes(plan: Plan) -> dict[tuple[int, int, int, int, int], list[str]]:
    """(threads, mem_mb, runtime, gpus, nodes) -> the stages of unfinished steps that ask for it; gpus of each node."""
    shapes: dict[tuple[int, int, int, int, int], list[str]] = {}
    for stage in dict.fromkeys(step.stage for step in missing(plan) if step.stage != "fetch"):  # which runs here
        held: StageResources = plan.resources_of_stage(stage)
        shape = (held.threads, held.mem_mb, held.runtime, held.gpus, plan.nodes_of_stage(stage))
        shapes.setdefault(shape, []).append(stage)
    return shapes


SITE, SCALE = "of slurm/site.yaml", "of the stage in the scale's resources"
# SLURM's words -> what to look at, for jobs without and with GPUs. The first that fits counts.
REFUSALS = [
    (r"configuration source|slurm controller|no answer", "SLURM_CONF: no controller is reached", None),
    (r"invalid account", f"`account` and `partition` {SITE}", f"`account` and `gpu_partition` {SITE}"),
    (r"invalid partition|no partition", f"`partition` {SITE}", f"`gpu_partition` {SITE}"),
    (r"qos", f"`qos` {SITE}", None),
    (r"feature", f"`constraint` {SITE}", None),
    (r"generic resource|gres", f"`gpu_model` and `gpu_partition` {SITE}", None),
    (r"permi|access", f"`account` and `partition` {SITE}", f"`account` and `gpu_partition` {SITE}"),
    (r"time limit", f"`runtime` {SCALE}", None),
    (r"memory", f"`mem_mb` {SCALE}", None),
    (
        r"node configuration|processors|cpu count",
        f"`partition` {SITE}, and `mem_mb` and `threads` {SCALE}",
        f"`gpu_model`, `gpu_partition` and `constraint` {SITE}, and `gpus`, `mem_mb` and `threads` {SCALE}",
    ),
]


def site_refusals(plan: Plan, site: Site) -> list[str]:
    """What SLURM would not take of the plan's unfinished jobs: one sentence each, with its own words; empty: all fine.

    Nothing is submitted (sbatch --test-only). A time limit above the partition's is told, too: many clusters
    accept such a job and never start it.
    """
    if not shutil.which("sbatch"):
        return ["sbatch is not on PATH; run this on a login node of the cluster."]
    refused: dict[tuple[str, str, str], list[str]] = {}
    limits = partition_limits()
    for (threads, mem_mb, runtime, count, nodes), stages in job_shapes(plan).items():
        message = sbatch_complaint(site, threads, mem_mb, runtime, count, nodes)
        name, limit = limits.get((site.gpu_partition if count else site.partition) or "", ("", None))
        if message and re.search("node configuration is not available", message) and nodes_out(name):
            continue  # it would take the job and let it wait for those nodes; if not, sbatch says so
        if message:
            fitting = ((a, b or a) for pattern, a, b in REFUSALS if re.search(pattern, message, re.IGNORECASE))
            what = next(fitting, (f"the fields {SITE}",) * 2)[bool(count)]
        elif limit and runtime * 60 > limit:
            what, message = f"`runtime` {SCALE}", f"partition {name} ends jobs after {limit / 60:.0f} min"
        else:
            continue
        many = f"{nodes} nodes of " if nodes > 1 else ""
        asked = f" ({many}{count} GPUs, {threads} CPUs, {mem_mb} MB, {runtime} min)" if SCALE in what else ""
        refused.setdefault((what, message, asked), []).extend(stages)
    given = ", ".join(f"{field} {value}" for field, value in site.model_dump().items() if value) or "nothing"
    return [
        f"SLURM does not take the jobs of {', '.join(stages)}{asked}; look at {what}. It says: {message}. "
        f"(slurm/site.yaml sets {given}.)"
        for (what, message, asked), stages in refused.items()
    ]


def sbatch_complaint(site: Site, threads: int, mem_mb: int, runtime: int, count: int, nodes: int) -> str | None:
    """SLURM's complaint about such a job, None when it would take it."""
    options = {
        "account": site.account,
        "partition": site.gpu_partition if count else site.partition,
        "qos": site.qos,
        "constraint": site.constraint if count else None,
        "gpus": (f"{site.gpu_model}:" if site.gpu_model else "") + str(count * nodes) if count else None,
        "time": runtime,
        "mem": f"{mem_mb}M",
        "cpus-per-task": threads,
        "nodes": nodes,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    try:
        done = subprocess.run(
            ["sbatch", "--test-only", *words, "--wrap", "true"],
            capture_output=True, text=True, timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {COMMAND_SECONDS:.0f} s"
    except OSError as error:
        return f"sbatch does not start ({error.strerror})"
    if done.returncode == 0:
        return None
    said = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(said)) or f"exit status {done.returncode}"


def nodes_out(partition: str) -> bool:
    """Whether nodes of the partition are down or drained: --test-only does not count them as there."""
    where = ["--partition", partition] if partition else []
    return bool(ask("sinfo", "--noheader", *where, "--states", "down,drain,maint,fail", "--format", "%N"))


def partition_limits() -> dict[str, tuple[str, float | None]]:
    """Partition -> (its name, its time limit in seconds); "" stands for the default one. Empty when SLURM is silent."""
    limits = {}
    for line in (ask("sinfo", "--noheader", "--format", "%P|%l") or "").splitlines():
        name, _, limit = line.strip().partition("|")
        entry = (name.rstrip("*"), seconds_of(limit))
        limits[entry[0]] = entry
        if name.endswith("*"):
            limits[""] = entry
    return limits


if __name__ == "__main__":  # the child of `products`
    import torch

    signal.alarm(PRODUCT_SECONDS)  # ends the process wherever it hangs
    if torch.version.cuda and not torch.cuda.is_available():
        print(json.dumps([f"torch {torch.__version__} sees no GPU; compare the driver with CUDA {torch.version.cuda}"]))
    else:
        print(json.dumps(product_problems([f"cuda:{i}" for i in range(torch.cuda.device_count())])))
