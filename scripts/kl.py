"""KL(base || checkpoint) for every checkpoint of a run: python -m scripts.kl results/kl/grpo-<digest>"""

from scalpel.artifact import Job, run_stage
from scalpel.checkpoints import checkpoints
from scalpel.config import KLRecipe, KLSettings


def produce(job: Job) -> None:
    from scalpel.analysis.kl import kl

    kl(
        job.inputs["base"] / "model",
        [(c.step, c.path) for c in checkpoints(job.inputs["train"])],
        job.inputs["evaluation_data"] / "math_500.parquet",
        KLRecipe.model_validate(job.recipe),
        KLSettings.model_validate(job.settings),
        job.directory,
    )


if __name__ == "__main__":
    run_stage(produce)
