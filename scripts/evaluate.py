"""Evaluate a share of a run's checkpoints on all tasks: python -m scripts.evaluate results/evaluate/<shard>-<digest>"""

from scalpel.artifact import Job, run_stage
from scalpel.checkpoints import checkpoints
from scalpel.config import EvaluationRecipe, EvaluationSettings


def produce(job: Job) -> None:
    from scalpel.evaluation import evaluate

    if "train" in job.inputs:
        wanted = set(job.recipe["checkpoints"])
        models = [(c.step, c.path) for c in checkpoints(job.inputs["train"]) if c.index in wanted]
    else:
        models = [(0, job.inputs["base"] / "model")]
    recipe = {key: value for key, value in job.recipe.items() if key != "checkpoints"}
    evaluate(
        models,
        job.inputs["evaluation_data"],
        EvaluationRecipe.model_validate(recipe),
        EvaluationSettings.model_validate(job.settings),
        job.directory,
    )


if __name__ == "__main__":
    run_stage(produce)
