"""Train, take in or copy the base model: python -m scripts.base results/base/<model>-<digest>"""

import shutil
from pathlib import Path

from scalpel.artifact.checking import checked_folder
from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.config.models import ToyModelRecipe

FORM = ("kind", "chat_template", "config_edits", "files")  # fields of the recipe that every kind has


def produce(job: Job) -> None:
    shutil.rmtree(job.directory / "model", ignore_errors=True)  # what a start that was ended left
    try:
        make(job)
    except Exception:  # no half model; what the training resumes from stays
        shutil.rmtree(job.directory / "model", ignore_errors=True)
        raise


def make(job: Job) -> None:
    template, edits = job.recipe["chat_template"], job.recipe.get("config_edits", {})
    if job.recipe["kind"] == "toy":
        from scalpel.toy.model import train_base

        recipe = ToyModelRecipe.of_identity({key: value for key, value in job.recipe.items() if key not in FORM})
        job.file("toy", "pretraining.parquet")
        train_base(recipe, job.inputs["toy"], job.directory, job.settings["threads"], template, edits)
    else:
        from scalpel.base_model import import_model

        fetched = "fetch" in job.inputs
        source = checked_folder(job.inputs["fetch"] / "files") if fetched else Path(job.settings["path"])
        import_model(source, job.directory / "model", template, edits, job.recipe.get("files"))


if __name__ == "__main__":
    run_stage(produce)
