"""Whether this node's GPUs work: looked at before each GPU job, in seconds, so that a broken one costs no run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from scalpel.artifact.files import ROOT, write_atomically
from scalpel.errors import Passing
from scalpel.launch import slurm

UNHEALTHY = "logs/unhealthy_nodes"  # in results/: a file for each node whose GPUs failed the check
COMMAND_SECONDS = 30.0  # that nvidia-smi may take
IMPORT_SECONDS = 300.0  # that importing torch may take from a cold network disk
PRODUCT_SECONDS = 60  # that the product on all GPUs may take
SIDE = 2048  # of the matrices multiplied


def refuse_unhealthy_nodes(gpus: int, results: Path) -> None:
    """Passing when GPUs of a node of this job do not work; marks in `results` make the next attempt run elsewhere.

    gpus: that the job has of each node. This node is looked at here, the job's others by srun, all at once.
    """
    here, others = os.environ.get("SLURMD_NODENAME") or socket.gethostname(), slurm.nodes()[1:]
    with ThreadPoolExecutor(len(others) + 1) as pool:
        asked = {here: pool.submit(health, gpus)} | {node: pool.submit(health_of, node, gpus) for node in others}
    found = {node: problems.result() for node, problems in asked.items() if problems.result()}
    marks = results / UNHEALTHY
    for node, problems in found.items():
        marks.mkdir(parents=True, exist_ok=True)
        write_atomically(marks / node, "\n".join(problems) + "\n")
    for node, problems in found.items():
        raise Passing(f"node {node}: {problems[0]} Jobs avoid it while {marks / node} is there.")


def health_of(node: str, gpus: int) -> list[str]:
    """`health` of another node of this job."""
    command, environment = slurm.on_node(node, gpus, [sys.executable, "-m", "scalpel.launch.health", str(gpus)])
    limit = COMMAND_SECONDS + IMPORT_SECONDS + PRODUCT_SECONDS
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=2 * limit, stdin=subprocess.DEVNULL,
            env=environment | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return [f"looking at its GPUs took more than {2 * limit:.0f} s."]
    except OSError as error:
        return [f"srun does not start ({error.strerror})."]
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [f"its GPUs could not be looked at (srun, status {done.returncode}: {last})."]


class GPU(NamedTuple):
    index: str  # type: ignore[assignment]
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
        [sys.executable, "-m", "scalpel.launch.health"],
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
    results: dict[str, tuple[str, torch.Tensor]]
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


if __name__ == "__main__" and len(sys.argv) > 1:  # another node of a job (`health_of`)
    print(json.dumps(health(int(sys.argv[1]))))
elif __name__ == "__main__":  # the child of `products`
    import torch

    signal.alarm(PRODUCT_SECONDS)  # ends the process wherever it hangs
    if torch.version.cuda and not torch.cuda.is_available():
        print(json.dumps([f"torch {torch.__version__} sees no GPU; compare the driver with CUDA {torch.version.cuda}"]))
    else:
        print(json.dumps(product_problems([f"cuda:{i}" for i in range(torch.cuda.device_count())])))
