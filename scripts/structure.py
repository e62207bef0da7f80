"""Sparsity, rank and spectrum of updates: python -m scripts.structure results/structure/<run>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import checkpoints, last_model
from scalpel.config.analysis import StructureRecipe


def produce(job: Job) -> None:
    from scalpel.analysis.structure import structure

    recipe = dict(job.recipe)
    indices = recipe.pop("checkpoints")
    models, others = (
        [(c.step, c.path) for c in checkpoints(job.inputs[role]) if c.index in indices] if role in job.inputs else None
        for role in ("checkpoints", "other")
    )
    base = last_model({"base": job.inputs["base"]})
    structure(
        base, models, others, StructureRecipe.of_identity(recipe), job.directory, job.settings["threads"]
    )  # fmt: skip


if __name__ == "__main__":
    run_stage(produce)
