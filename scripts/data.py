"""Choose the rows that are trained on: python -m scripts.data results/data/<dataset>-<digest>"""

from pathlib import Path

from scalpel.artifact.checking import checked, unchanged
from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage
from scalpel.config.data import FilterRecipe


def produce(job: Job) -> None:
    from scalpel.data.filter import filter_rows
    from scalpel.data.sources import open_rows

    source, planned = job.recipe["source"], {}
    if source["kind"] == "toy":
        files = [job.file("toy", "rows.parquet")]
    elif source["kind"] == "hub":
        files = [checked(path) for path in sorted((job.inputs["fetch"] / "files").rglob("*.parquet"))]
    else:
        files = [Path(job.settings["path"])]
        planned = {files[0]: source["sha256"]}
    recipe = FilterRecipe.of_identity(job.recipe["filter"])
    columns, constants = source.get("columns", {}), source.get("constants", {})
    guarded = [checked(directory / "text.parquet") for directory in job.inputs_of("questions").values()]
    with unchanged(planned):
        rows = open_rows(files, columns, constants, source.get("boxed_answer_of"), recipe.columns)
        filter_rows(rows, recipe, job.inputs["base"] / "model", guarded, job.directory)


if __name__ == "__main__":
    run_stage(produce)
