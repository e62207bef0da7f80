"""Choose the rows that are trained on: python -m scripts.data results/data/questions-<digest>"""

from pathlib import Path

from scalpel.artifact import Job, run_stage
from scalpel.config import FilterRecipe


def produce(job: Job) -> None:
    from scalpel.data.filter import filter_rows
    from scalpel.data.sources import open_rows

    kind = job.recipe["source"]["kind"]
    if kind == "toy":
        files = [job.inputs["toy"] / "rows.parquet"]
    elif kind == "hub":
        files = sorted((job.inputs["fetch"] / "files").rglob("*.parquet"))
    else:
        files = [Path(job.settings["path"])]
    rows = open_rows(
        files,
        job.recipe["source"].get("columns", {}),
        job.recipe["source"].get("constants", {}),
        job.recipe["source"].get("boxed_answer_of"),
    )
    filter_rows(
        rows,
        FilterRecipe.model_validate(job.recipe["filter"]),
        job.inputs["base"] / "model",
        job.inputs["evaluation_data"] / "questions.parquet",
        job.directory,
    )


if __name__ == "__main__":
    run_stage(produce)
