"""Relative weight change, matrix by matrix: python -m scripts.weight_change results/weight_change/grpo-<digest>"""

from scalpel.artifact import Job, run_stage
from scalpel.checkpoints import checkpoints


def produce(job: Job) -> None:
    from scalpel.analysis.weight_change import weight_change

    weight_change(
        job.inputs["base"] / "model",
        [(c.step, c.path) for c in checkpoints(job.inputs["train"])],
        job.directory,
        job.settings["threads"],
    )


if __name__ == "__main__":
    run_stage(produce)
