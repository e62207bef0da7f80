"""Generate the toy world: python -m scripts.toy results/toy/world-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.config.models import ToyWorldRecipe


def produce(job: Job) -> None:
    from scalpel.toy.world import write_world

    write_world(ToyWorldRecipe.of_identity(job.recipe), job.directory)


if __name__ == "__main__":
    run_stage(produce)
