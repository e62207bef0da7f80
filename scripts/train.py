"""Train one run, or go on with it: python -m scripts.train results/train/grpo-<digest>"""

from scalpel.artifact import Job, run_stage
from scalpel.config import GRPORecipe, SFTRecipe, TrainSettings

RECIPES = {"grpo": GRPORecipe, "sft": SFTRecipe}


def produce(job: Job) -> None:
    from scalpel.methods import train

    train(
        RECIPES[job.recipe["method"]].model_validate(job.recipe),
        job.inputs["base"] / "model",
        job.inputs["data"] / "kept.parquet",
        job.inputs["order"] / "order.parquet",
        job.directory,
        TrainSettings.model_validate(job.settings),
    )


if __name__ == "__main__":
    run_stage(produce, resumable=True)
