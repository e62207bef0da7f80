"""Completions of the last training steps, wrong ones with the most tags first: how a model exploits its rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalpel.config.types import Few
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.results import Results

READS = ("train",)
CODE = ("grading/text.py",)
COLUMNS = ["step", "origin", "prompt", "completion", "accuracy_reward", "format_reward"]


class Options(ExhibitOptions):
    count: Few = 3  # completions of each run
    last_steps: Few = 10  # of each run's training, from which they are taken
    characters: Annotated[int, Field(ge=20, le=10**5)] = 1200  # of a completion that are shown: its end


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, step, accuracy, format, tags (how many the completion holds), tag count (the reward), question
    and completion: the end of it."""
    import pandas as pd

    from scalpel.grading.text import TAGS, tag_count

    rollouts = results.read("train", "rollouts.parquet", COLUMNS)
    rows = []
    for _, of_run in rollouts[rollouts["origin"] == "own"].groupby(["run", "seed"], sort=False):
        late = of_run[of_run["step"] > of_run["step"].max() - options.last_steps]
        late = late.assign(
            tags=[sum(map(text.count, TAGS)) for text in late["completion"]], wrong=late["accuracy_reward"] == 0
        )
        first = late.sort_values(["wrong", "tags", "step"], ascending=False, kind="stable")
        chosen = first.drop_duplicates("completion")
        rows.append(chosen.head(options.count))
    found = pd.concat(rows, ignore_index=True)
    shown = [_end(text, options.characters) for text in found["completion"]]
    return pd.DataFrame(
        {
            "run": found["run"],
            "seed": found["seed"],
            "step": found["step"],
            "accuracy": found["accuracy_reward"],
            "format": found["format_reward"],
            "tags": found["tags"],
            "tag count": [tag_count(text) for text in found["completion"]],
            "question": found["prompt"],
            "completion": shown,
        }
    )


def _end(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"... {text[-characters:]}"
