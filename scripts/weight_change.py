"""Relative weight change of checkpoints: python -m scripts.weight_change results/weight_change/<run>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import checkpoints, reference


def produce(job: Job) -> None:
    from scalpel.analysis.weight_change import weight_change

    models = [(c.step, c.path) for c in checkpoints(job.inputs["checkpoints"])]
    weight_change(reference(job.inputs), models, job.directory, job.settings["threads"])


if __name__ == "__main__":
    run_stage(produce)
