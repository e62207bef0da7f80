"""Generate the toy world: python -m scripts.toy results/toy/world-<digest>"""

from scalpel.artifact import Job, run_stage
from scalpel.config import ToyWorldRecipe


def produce(job: Job) -> None:
    from scalpel.toy.world import write_world

    write_world(ToyWorldRecipe.model_validate(job.recipe), job.directory)


if __name__ == "__main__":
    run_stage(produce)
