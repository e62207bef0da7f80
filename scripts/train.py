"""Train one run, or resume it: python -m scripts.train results/train/<run>-<digest>"""

from scalpel.artifact.checking import checked_folder
from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import last_model
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

        for folder in (job.inputs["base"] / "model", last_model(job.inputs, "start")):
            checked_folder(folder)  # once, and not by every rank
        for role, name in (("data", "kept.parquet"), ("order", "order.parquet")):
            job.file(role, name)
        supervise(job, settings, method.samples)


if __name__ == "__main__":
    run_stage(produce)
