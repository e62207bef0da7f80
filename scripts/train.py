"""Train one run, or resume it: python -m scripts.train results/train/<run>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.config.training import TrainSettings
from scalpel.methods import METHODS


def produce(job: Job) -> None:
    settings = TrainSettings.model_validate(job.settings)
    method = METHODS[job.recipe["method"]]
    if settings.engine == "single" and not (method.samples and settings.server):
        from scalpel.methods.run import train_job

        train_job(job, settings)
    else:
        from scalpel.launch.supervise import supervise

        supervise(job, settings, method.samples)


if __name__ == "__main__":
    run_stage(produce)
