"""A model's own verified answers: python -m scripts.generate results/generate/<model>.s<seed>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import last_model
from scalpel.config.data import FilterRecipe, GenerateRecipe
from scalpel.config.evaluation import EvaluationSettings


def produce(job: Job) -> None:
    from scalpel.data.generate import generate

    recipe = GenerateRecipe.of_identity({key: value for key, value in job.recipe.items() if key != "seed"})
    max_tokens = FilterRecipe.of_identity(job.recipe_of("data")["filter"]).max_tokens
    settings = EvaluationSettings.model_validate(job.settings)
    generate(
        job.file("data", "kept.parquet"), last_model(job.inputs), job.inputs["base"] / "model", recipe,
        job.recipe["seed"], max_tokens, settings, job.directory,
    )  # fmt: skip


if __name__ == "__main__":
    run_stage(produce)
