"""Check a question set and lay it out for its harness: python -m scripts.questions results/questions/<set>-<digest>"""

import tempfile
from pathlib import Path

from scalpel.artifact.checking import checked
from scalpel.artifact.job import Job
from scalpel.artifact.stage import run_stage


def produce(job: Job) -> None:
    from scalpel.data.sources import fetched_file
    from scalpel.evaluation.questions import prepare

    if "count" in job.recipe:
        from scalpel.config.models import ToyWorldRecipe
        from scalpel.toy.benchmarks import write_drawn

        world = ToyWorldRecipe.of_identity(job.recipe_of("toy"))
        sources = [job.file("toy", f"{name}.parquet") for name in ("facts", "rows")]
        with tempfile.TemporaryDirectory(prefix="scalpel_") as folder:
            drawn = Path(folder) / f"{job.recipe['toy']}.parquet"
            write_drawn(job.recipe["toy"], job.recipe["count"], world, *sources, drawn)
            prepare(job.recipe, {"questions": drawn}, job.directory)
        return
    if "toy" in job.inputs:
        folder, name = job.inputs["toy"] / "evaluation", job.recipe["toy"]
        files = {"questions": folder / f"{name}.parquet", "examples": folder / f"{name}_examples.parquet"}
        files = {role: checked(path) for role, path in files.items() if role == "questions" or path.is_file()}
    else:
        files = {role: Path(path) for role, path in job.settings["paths"].items()}
        files |= {role: checked(fetched_file(directory)) for role, directory in job.inputs_of("fetch").items()}
    prepare(job.recipe, files, job.directory)


if __name__ == "__main__":
    run_stage(produce)
