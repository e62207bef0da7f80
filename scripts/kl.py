"""KL(reference || checkpoint) of a run's checkpoints: python -m scripts.kl results/kl/<run>.<measure>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import checkpoints, reference
from scalpel.config.analysis import KLRecipe, KLSettings


def produce(job: Job) -> None:
    from scalpel.analysis.kl import kl

    found = checkpoints(job.inputs["checkpoints"])
    kl(
        reference(job.inputs),
        [(c.step, c.path) for c in found],
        job.file("questions", "questions.parquet"),
        KLRecipe.of_identity(job.recipe),
        KLSettings.model_validate(job.settings),
        job.directory,
        rendered_by=found[-1].path,  # the base model's template, but of a given run that names its own
    )


if __name__ == "__main__":
    run_stage(produce)
