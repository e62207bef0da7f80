"""Take in checkpoints made elsewhere: python -m scripts.given results/given/<run>-<digest>"""

from pathlib import Path

from scalpel.artifact.checking import checked_folder
from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage


def produce(job: Job) -> None:
    from scalpel.given_import import take_in

    fetched = {int(step): checked_folder(directory / "files") for step, directory in job.inputs_of("fetch").items()}
    sources = fetched or {int(step): Path(path) for step, path in job.settings["paths"].items()}
    last = checked_folder(job.inputs["template"] / "files") if "template" in job.inputs else sources[max(sources)]
    take_in(sources, job.inputs["base"] / "model", job.recipe, job.directory, job.settings.get("output"), last)


if __name__ == "__main__":
    run_stage(produce)
