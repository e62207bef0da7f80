"""Draw one figure: python -m scripts.figure results/figures/<study>/recipes/<figure>-<digest>.json"""

from pathlib import Path

from scalpel.artifact import circumstances, run_drawing


def produce(frozen: dict, inputs: dict[str, list[Path]], folder: Path) -> None:
    from scalpel import figures

    options = figures.options(frozen["recipe"]["options"], frozen["name"])
    provenance = {"digest": frozen["digest"], "commit": circumstances()["commit"], "inputs": frozen["inputs"]}
    figures.render(frozen["name"], inputs, options, folder / frozen["name"], provenance)


if __name__ == "__main__":
    run_drawing(produce)
