"""Final scores in percent in the form of one of the paper's tables: ours and the published ones, run by run.

A ± is the standard deviation between seeds, as in the paper; none for a single seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalpel.config.types import Name
from scalpel.exhibits.options import ExhibitOptions

if TYPE_CHECKING:
    import pandas as pd

    from scalpel.exhibits.results import Results

READS = ("evaluate",)
PUBLISHED = ("scores",)
HERE, THERE = "here", "published"


class Options(ExhibitOptions):
    section: str  # of the published scores: table_1
    # Name of a mean -> the tasks it is taken over, of those that were asked here.
    averages: Annotated[dict[str, tuple[Name, ...]], Field(min_length=1)]
    more: tuple[Name, ...] = ()  # tasks that the paper does not have, shown beside its own and in no mean
    published_only: dict[str, str] = {}  # published rows of no run of ours -> name in the table


def table(results: Results, options: Options) -> pd.DataFrame:
    """A row per run and source (column `of`); columns of tasks, each with its ±, and of means over tasks.

    A mean of ours is over the tasks of its list that were asked here. Raises UserError for a section that there is not.
    """
    import pandas as pd

    from scalpel.config.load import nearest
    from scalpel.errors import UserError
    from scalpel.exhibits.results import task_name, task_order

    sections = results.published.get("scores", {})
    if options.section not in sections:
        raise UserError(
            f"section: no published table is named {options.section!r}{nearest(options.section, sections)}."
        )
    there = sections[options.section]
    here = ours(results, options.averages)
    means = list(options.averages)
    tasks = [task for row in there.values() for task in row] + [task for of in options.averages.values() for task in of]
    tasks = task_order([task for task in (*tasks, *options.more) if task not in means])
    shown = [name for name in (*tasks, *means) if any(name in row for row in [*there.values(), *here.values()])]
    rows = []
    for run in [*results.runs, *options.published_only]:
        for source, found in ((HERE, here), (THERE, there)):
            if run in found:
                row = {"run": options.published_only.get(run, run), "of": source}
                for name in shown:
                    value, spread = (*found[run].get(name, (math.nan,)), math.nan)[:2]
                    label = name.replace("average_", "mean ").replace("average", "mean") if name in means else name
                    row |= {task_name(label): value, f"{task_name(label)} ±": spread}
                rows.append(row)
    return pd.DataFrame(rows)


def ours(results: Results, averages: dict[str, tuple[str, ...]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Run -> task or mean -> (percent, standard deviation between seeds); a mean's seeds are paired, task by task.

    A run that was not asked all that other runs were of a mean's tasks has no mean.
    """
    from scalpel.exhibits.results import final

    scores = final(results.scores())
    asked = list(dict.fromkeys(scores["task"]))
    groups = {task: (task,) for task in asked} | averages
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for run, of_run in scores.groupby("run", sort=False):
        by_seed = of_run.pivot_table(index="seed", columns="task", values="value")
        for name, members in groups.items():
            there = [task for task in members if task in asked]
            if there and all(task in by_seed for task in there):
                values = 100 * by_seed[there].mean(axis=1, skipna=False)
                found.setdefault(run, {})[name] = (float(values.mean(skipna=False)), float(values.std(ddof=1)))
    return found
