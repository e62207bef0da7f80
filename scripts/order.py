"""Materialise the question order all methods follow: python -m scripts.order results/order/order-<digest>"""

from scalpel.artifact import Job, run_stage
from scalpel.config import OrderRecipe


def produce(job: Job) -> None:
    from scalpel.data.order import write_order

    write_order(job.inputs["data"] / "kept.parquet", OrderRecipe.model_validate(job.recipe), job.directory)


if __name__ == "__main__":
    run_stage(produce)
