"""One training job: the rollout servers, the ranks, and an end in which all of them have ended.

The ranks are accelerate's (DeepSpeed ZeRO-2 or FSDP), started here rather than by accelerate's own launcher,
which on SIGTERM kills its ranks after 30 s: a step of a 7B model takes longer, and they are to save first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from scalpel.artifact.job import Job
from scalpel.checkpoints import last_model
from scalpel.config.training import RolloutServer, TrainSettings
from scalpel.errors import AGAIN, FINAL, Interrupted, Passing, UserError
from scalpel.inference import EngineSettings
from scalpel.inference.meeting import ServerOrder
from scalpel.launch import slurm
from scalpel.launch.crew import DEVICES, EXTENSIONS, Crew
from scalpel.launch.servers import RolloutServers
from scalpel.methods import METHODS
from scalpel.methods.rollout_recipe import RolloutRecipe
from scalpel.stages import STAGES

LAST_STEP_SECONDS = 3600.0  # that ranks may take to finish a step and save after SIGTERM; SLURM's own limit is shorter


def supervise(job: Job, settings: TrainSettings, samples: bool) -> None:
    """Carry out a training job with settings.ranks x settings.nodes ranks, and servers if the method `samples`.

    Raises Interrupted when the ranks saved and stopped, UserError when a process failed; either way no process
    of the job is left.
    """
    server = settings.server if samples else None
    wanted = settings.nodes + (server.nodes if server else 0)
    nodes = slurm.nodes() or [socket.gethostname()]
    if wanted > len(nodes):
        raise UserError(
            f"train_settings need {wanted} nodes, the job has {len(nodes)}; run it through SLURM "
            "(snakemake --profile slurm), or lower train_settings.nodes and train_settings.server.nodes."
        )
    here = nodes[0]
    devices = visible_devices()
    shared = server is not None and server.nodes == 0
    served, rest = (devices[: server.gpus], devices[server.gpus :]) if shared else ([], devices)  # type: ignore[union-attr]
    if devices and len(rest) < settings.ranks:
        raise UserError(
            f"{here} gives the job {len(devices)} GPUs; {settings.ranks} ranks"
            f"{f' and {server.gpus} for the rollout server' if shared else ''} need more: lower train_settings.ranks "  # type: ignore[union-attr]
            "or raise resources.train.gpus."
        )
    with Crew(len(devices)) as crew, noting_signals() as asked, contextlib.ExitStack() as after:
        servers = None
        if server:
            gpus = [[gpu] for gpu in served] or [[str(gpu)] for gpu in range(server.gpus)] or [[]]
            places: list[Any] = [None] if shared else nodes[settings.nodes : wanted]
            places = [(place, mine if devices else None) for place in places for mine in gpus]
            servers = after.enter_context(RolloutServers(crew, order(job, settings), places))
        environment = servers.environment if servers else {}
        ranks = start_ranks(crew, job.directory, settings, nodes, rest, environment)
        watch(crew, job.directory, ranks, servers, settings, asked)


def order(job: Job, settings: TrainSettings) -> ServerOrder:
    """What the run's servers are started with; a request asks for one batch of rollouts at most."""
    assert settings.server is not None
    recipe = cast(RolloutRecipe, METHODS[job.recipe["method"]].Recipe.of_identity(job.recipe))
    engine = EngineSettings(
        batch_size=settings.completions_at_once, memory_fraction=settings.server.memory_fraction, dtype=recipe.dtype
    )
    return ServerOrder(
        kind=recipe.inference,
        model=str(last_model(job.inputs, "start")),
        engine=engine,
        completions=recipe.questions_per_step * recipe.generations * recipe.updates,
        max_tokens=recipe.max_completion_tokens,
    )


def start_ranks(
    crew: Crew,
    directory: Path,
    settings: TrainSettings,
    nodes: list[str],
    devices: list[str],
    environment: dict[str, str],
) -> list[str]:
    """Start every rank; returns their names."""
    world = settings.ranks * settings.nodes
    master = "127.0.0.1" if settings.nodes == 1 else slurm.address(nodes[0])
    common = environment | {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(settings.ranks),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(settings.threads),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    if not devices:
        common |= {"DS_ACCELERATOR": "cpu"}
    if os.access(sys.prefix, os.W_OK):  # what DeepSpeed compiles belongs to this environment and its torch
        common |= {EXTENSIONS: os.environ.get(EXTENSIONS, f"{sys.prefix}/torch_extensions")}
    names = []
    for rank in range(world):
        node, local = divmod(rank, settings.ranks)
        mine = {"RANK": str(rank), "LOCAL_RANK": str(local)}
        if devices:
            mine[DEVICES] = ",".join(devices)
        names.append(f"rank {rank}")
        crew.start(names[-1], "scripts.rank", [str(directory)], common | mine, None if node == 0 else nodes[node])
    return names


def watch(
    crew: Crew,
    directory: Path,
    ranks: list[str],
    servers: RolloutServers | None,
    settings: TrainSettings,
    asked: dict,
) -> None:
    """Until the ranks end: start a server that died again, pass SIGTERM on, and end all when one rank fails."""
    restarts = cast(RolloutServer, settings.server).restarts if servers else 0
    told: Any = 0.0
    while True:
        ended: dict[str, Any] = {name: crew.status(name) for name in ranks if crew.status(name) is not None}
        failed = {name: status for name, status in ended.items() if status not in (0, AGAIN)}
        if failed:
            time.sleep(1.0)  # the others' own words about it
            crew.kill(ranks)
            name, status = next(iter(failed.items()))
            how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
            told = UserError if status == FINAL else Passing
            again = " Start it again and it resumes." if STAGES[directory.parent.name].resumable else ""
            raise told(f"{name} of {directory} {how}; see its lines in the log.{again}")
        if len(ended) == len(ranks):
            break
        for number in servers.ended() if servers else []:
            assert servers is not None
            name = servers.name(number)
            status = crew.status(name)
            crew.end(name)
            if not restarts:
                crew.kill(ranks)
                raise Passing(
                    f"{name} ended with status {status} too often (train_settings.server.restarts); see its lines."
                )
            restarts -= 1
            print(f"{name} ended with status {status}: starting it again", file=sys.stderr, flush=True)
            servers.start(number)
        if asked.get("stop") and not told:
            told = time.monotonic()
            crew.signal(ranks, signal.SIGTERM)
        if told and time.monotonic() - told > LAST_STEP_SECONDS:
            crew.kill(ranks)
            raise Passing(f"{directory}: the ranks did not stop within {LAST_STEP_SECONDS:.0f} s of being asked to.")
        time.sleep(0.2)
    if AGAIN in ended.values():
        raise Interrupted("", requeue=not asked.get("stop"))


@contextlib.contextmanager
def noting_signals() -> Iterator[dict]:
    """SIGTERM and SIGUSR1 set ``stop`` instead of ending this process."""
    asked: dict = {}
    before = {
        number: signal.signal(number, lambda *_: asked.update(stop=True)) for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def visible_devices() -> list[str]:
    """Names of the GPUs this job may use, as CUDA_VISIBLE_DEVICES takes them; empty without any."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    import torch

    count = torch.cuda.device_count()
    return [name for name in given.split(",") if name][:count] if given else [str(i) for i in range(count)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
