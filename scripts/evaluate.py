"""Evaluate checkpoints on a group of benchmarks: python -m scripts.evaluate results/evaluate/<run>.<group>-<digest>"""

from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.checkpoints import checkpoints
from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings


def produce(job: Job) -> None:
    from scalpel.evaluation import evaluate

    wanted = set(job.recipe["checkpoints"])
    if wanted:
        models = [(c.step, c.path) for c in checkpoints(job.inputs["checkpoints"]) if c.index in wanted]
    else:
        models = [(0, job.inputs["base"] / "model")]
    recipe = EvaluationRecipe.of_identity({key: value for key, value in job.recipe.items() if key != "checkpoints"})
    settings = EvaluationSettings.model_validate(job.settings)
    evaluate(models, job.inputs_of("questions"), recipe, settings, job.directory)


if __name__ == "__main__":
    run_stage(produce)
