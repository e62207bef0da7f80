"""KL(reference || checkpoint) of a run's checkpoints: python -m scripts.kl results/kl/<run>.<measure>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import checkpoints, reference
from scalpel.config.analysis import KLRecipe, KLSettings


def produce(job: Job) -> None:
    from scalpel.analysis.kl import kl

    kl(
        reference(job.inputs),
        [(c.step, c.path) for c in checkpoints(job.inputs["checkpoints"])],
        job.inputs["questions"] / "questions.parquet",
        KLRecipe.of_identity(job.recipe),
        KLSettings.model_validate(job.settings),
        job.directory,
    )


if __name__ == "__main__":
    run_stage(produce)
