"""Audit the installed stack as runs will use it: python -m scripts.audit results/audit/<engine>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.config.training import TrainSettings


def produce(job: Job) -> None:
    settings = TrainSettings.model_validate(job.settings)
    if settings.engine == "single":
        from scalpel.audit.probes import audit

        audit(settings, job.recipe["fingerprint"], job.inputs["base"] / "model", job.directory)
    else:
        from scalpel.launch.supervise import supervise

        supervise(job, settings, samples=False)


if __name__ == "__main__":
    run_stage(produce)
