"""Train one run, or go on with it: python -m scripts.train results/train/grpo-<digest>"""

from scalpel.artifact import Job, run_stage
from scalpel.config import TrainSettings


def produce(job: Job) -> None:
    settings = TrainSettings.model_validate(job.settings)
    samples = job.recipe["method"] == "grpo"
    if settings.engine == "single" and not (samples and settings.server):
        from scalpel.methods import train_job

        train_job(job, settings)
    else:
        from scalpel.launch.supervise import supervise

        supervise(job.directory, job.inputs["base"] / "model", settings, samples)


if __name__ == "__main__":
    run_stage(produce, resumable=True)
