"""Causal tracing of known facts: python -m scripts.trace results/trace/<model>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import last_model
from scalpel.config.analysis import TraceRecipe, TraceSettings


def produce(job: Job) -> None:
    from scalpel.analysis.trace import trace

    facts = job.file("questions", "questions.parquet")
    trace(
        last_model(job.inputs), facts, TraceRecipe.of_identity(job.recipe),
        TraceSettings.model_validate(job.settings), job.directory,
    )  # fmt: skip


if __name__ == "__main__":
    run_stage(produce)
