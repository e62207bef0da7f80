"""Materialise the question order all methods follow: python -m scripts.order results/order/<rows>.s<seed>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.config.data import OrderRecipe


def produce(job: Job) -> None:
    from scalpel.data.order import write_order

    write_order(job.file("data", "kept.parquet"), OrderRecipe.of_identity(job.recipe), job.directory)


if __name__ == "__main__":
    run_stage(produce)
