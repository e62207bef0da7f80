"""The GPUs of this node, and whether the processes of a training run fit those its job asks for."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

from scalpel.launch.health import ecc_problems, nvidia_smi
from scalpel.plan import Plan
from scalpel.preflight.finding import ERROR, OK, WARNING, Finding

DRIVER = {12: 525, 13: 580}  # first driver branch of each CUDA major version (CUDA's release notes)


def gpu_stages(plan: Plan) -> list[str]:
    """Stages of unfinished steps that need GPUs."""
    return [s for s in dict.fromkeys(step.stage for step in plan.missing()) if plan.resources_of_stage(s).gpus]


def gpus_of_this_node(most: int) -> Finding:
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
    """Whether the processes of a training run fit the GPUs its job asks for, in each study."""
    held = plan.resources_of_stage("train").gpus
    for study, config in plan.config.studies.items():
        settings = config.setting.train_settings
        if not held or settings.nodes > 1 or (settings.server and settings.server.nodes):
            continue
        server = settings.server.gpus if settings.server else 0
        used = settings.ranks + server
        parts = f"{settings.ranks} for ranks and {server} for the server"
        uses = f"train_settings of study {study} uses {used}"
        if used > held:
            sentence = f"{uses} GPUs ({parts}), but resources.train.gpus is {held}; change one of them."
            yield Finding("GPU layout", ERROR, sentence)
        elif used < held:
            sentence = f"resources.train.gpus is {held}, {uses} ({parts}); the others idle and are paid for: "
            yield Finding("GPU layout", WARNING, f"{sentence}raise train_settings.ranks or lower the resource.")
