"""Train, fetch or copy the base model: python -m scripts.base results/base/base-<digest>"""

from pathlib import Path

from scalpel.artifact import Job, run_stage
from scalpel.config import ToyModelRecipe


def produce(job: Job) -> None:
    if job.recipe["kind"] == "toy":
        from scalpel.toy.model import train_base

        recipe = ToyModelRecipe.model_validate({key: value for key, value in job.recipe.items() if key != "kind"})
        train_base(recipe, job.inputs["toy"], job.directory, job.settings["threads"])
    else:
        from scalpel.base_model import import_model

        source = job.inputs["fetch"] / "files" if "fetch" in job.inputs else Path(job.settings["path"])
        import_model(source, job.directory / "model", job.recipe.get("files"))


if __name__ == "__main__":
    run_stage(produce)
