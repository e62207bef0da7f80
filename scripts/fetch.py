"""Fetch a model or dataset of the hub at a commit hash: python -m scripts.fetch results/fetch/<name>-<digest>

The one stage that needs the network; run it on a login node. What was fetched earlier is kept and verified.
"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage


def produce(job: Job) -> None:
    from scalpel.fetch import fetch

    fetch(job.recipe, job.directory / "files")


if __name__ == "__main__":
    run_stage(produce)
