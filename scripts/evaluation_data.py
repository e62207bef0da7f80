"""Lay out the evaluation questions for the harnesses: python -m scripts.evaluation_data results/evaluation_data/..."""

from pathlib import Path

from scalpel.artifact import Job, run_stage


def produce(job: Job) -> None:
    from scalpel.data.sources import fetched_file
    from scalpel.evaluation import prepare

    if job.recipe["kind"] == "toy":
        files = {path.stem: path for path in sorted((job.inputs["toy"] / "evaluation").glob("*.parquet"))}
    else:
        files = {name: Path(path) for name, path in job.settings["paths"].items()}
        files |= {name: fetched_file(directory) for name, directory in job.inputs_of("fetch").items()}
    prepare(files, job.directory)


if __name__ == "__main__":
    run_stage(produce)
