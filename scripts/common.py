"""Rows that every source has an answer to: python -m scripts.common results/common/<rows>.s<seed>-<digest>"""

from scalpel.artifact.checking import manifest_of
from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage


def produce(job: Job) -> None:
    from scalpel.data.common import keep_common

    others = {name: job.file(f"others/{name}", "kept.parquet") for name in job.inputs_of("others")}
    generated = [role for role in job.inputs if "answers.parquet" in manifest_of(job.inputs[role])["files"]]
    difficulty = job.file(generated[0], "answers.parquet") if generated else None
    keep_common(job.file("own", "kept.parquet"), others, job.directory, difficulty)


if __name__ == "__main__":
    run_stage(produce)
