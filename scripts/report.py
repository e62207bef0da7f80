"""Write a study's report: python -m scripts.report results/figures/<study>/recipes/report-<digest>.json"""

from pathlib import Path

from scalpel.artifact import circumstances, run_drawing


def produce(frozen: dict, inputs: dict[str, list[Path]], folder: Path) -> None:
    from scalpel.report.build import build

    recipe = frozen["recipe"]
    figures = {name: folder / f"{name}.png" for name in recipe["figures"]}
    facts = {key: recipe[key] for key in ("title", "scale", "description", "runs", "evaluation")}
    facts |= {"study": frozen["study"], "digest": frozen["digest"], "commit": circumstances()["commit"]}
    out = folder.parents[1] / "report" / frozen["study"] / "index.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    build(inputs, figures, recipe["published"], facts, out)


if __name__ == "__main__":
    run_drawing(produce)
