"""What a job asks for when it is tried again. Nothing here imports torch: the Snakefile does import it."""

from __future__ import annotations

from collections.abc import Mapping

from scalpel.config.scale import StageResources
from scalpel.config.site import Site
from scalpel.launch.slurm import Partition

LAST = 4  # attempts that a job has at most: one, and slurm/profile.v9+.yaml's `retries`
OF_ONE_SIZE = {"train"}  # what a run holds in memory follows from its model and engine, the same at every attempt


def asked(
    given: StageResources, stage: str, attempt: int, site: Site, partitions: Mapping[str, Partition]
) -> StageResources:
    """Resources of a stage's job at this attempt; the first is 1.

    Time grows by half of the first amount with every attempt, and so does memory but for stages OF_ONE_SIZE. Neither
    grows beyond the limit and the largest node of its partition, where SLURM tells (`partitions`, as
    scalpel.launch.slurm gives them), nor does any attempt ask for more than the site allows.
    """
    there = partitions.get((site.gpu_partition if given.gpus else site.partition) or "", Partition())
    minutes = None if there.seconds is None else int(there.seconds // 60)

    def grown(amount: int, attempts: int, there: int | None, most: int | None) -> int:
        wanted = round(amount * (attempts + 1) / 2)
        wanted = wanted if there is None else min(wanted, max(amount, there))
        return min(wanted, most or wanted)

    return given.model_copy(
        update={
            "runtime": grown(given.runtime, attempt, minutes, site.max_runtime),
            "mem_mb": grown(given.mem_mb, 1 if stage in OF_ONE_SIZE else attempt, there.mem_mb, site.max_mem_mb),
        }
    )
