"""KL divergence of checkpoints from the base model, or from the model a run started from; published ones beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.exhibits.options import BesideOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalpel.exhibits.results import Results
    from scalpel.exhibits.style import Style

READS = ("kl",)
PUBLISHED = ("kl", "questions_per_step")
MODEL = {"base": "base model", "start": "model started from"}
DASHED = (0, (3, 1.5))


Options = BesideOptions


def table(results: Results, options: Options) -> pd.DataFrame:
    """Columns run, seed, measure, step, x, kl, kl_solution (nats, means over questions), their *_stderr, questions and
    source: ours or published. Published values are those of the first measure, over all positions, without errors."""
    import pandas as pd

    from scalpel.exhibits.beside import OURS, PUBLISHED, courses

    found = results.compared(options.reference)
    frame = found.placed(found.kl(), options.x).rename(columns={"part": "measure"}).assign(source=OURS)
    values = ["kl", "kl_stderr", "kl_solution", "kl_solution_stderr", "questions"]
    rows = [
        {"run": run, "seed": 0, "measure": frame["measure"].iloc[0], "step": step, "x": x, "kl": value,
         "source": PUBLISHED}
        for run, (course, places) in courses(results, "kl", options).items()
        for step, x, value in zip(course["steps"], places, course["values"], strict=True)
    ]  # fmt: skip
    columns = ["run", "seed", "measure", "step", "x", *values, "source"]
    return (
        pd.concat([frame[columns], pd.DataFrame(rows, columns=columns)], ignore_index=True) if rows else frame[columns]
    )


def draw(frame: pd.DataFrame, options: Options, style: Style) -> Figure:
    """A panel per measure, all positions solid with bands of one standard error, the solution's alone dashed; and one
    of what is published. A panel whose scale is not the first one's says so."""
    from matplotlib.lines import Line2D

    from scalpel.exhibits.beside import OURS, PUBLISHED
    from scalpel.exhibits.results import task_name

    style = style.with_runs({run: name for run, name in options.also_published.items() if run in set(frame["run"])})
    shown = list(frame.drop_duplicates(["source", "measure"])[["source", "measure"]].itertuples(index=False, name=None))
    columns = 1 if options.page_columns == 1 else len(shown)
    rows = len(shown) // columns
    figure = style.figure(2.2 + 4.8 * len(shown), 3.8 * rows, f"KL divergence from the {MODEL[options.reference]}")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (source, measure) in zip(panels, shown, strict=True):
        part = frame[(frame["measure"] == measure) & (frame["source"] == source)]
        if source == OURS:
            style.lines(axes, part, "kl", "kl_stderr")
            style.lines(axes, part, "kl_solution", "kl_solution_stderr", linestyle=DASHED, markerfacecolor="white")
        else:
            style.lines(axes, part, "kl")
        name = task_name(measure)
        axes.set_title(f"{name}, {PUBLISHED}" if source == PUBLISHED else name if len(shown) > 1 else "")
        if options.log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    panels[0].set_ylabel(f"KL({options.reference} || checkpoint)\n(nats per position)")
    for axes in panels[1:]:
        if axes.get_ylim() != panels[0].get_ylim():
            axes.set_ylabel("nats per position,\non a scale of its own")
    kinds = [Line2D([], [], color="#303030", label="all positions"),
             Line2D([], [], color="#303030", linestyle=DASHED, label="solution only")]  # fmt: skip
    style.legend(figure, extra=kinds, loc="outside right center")
    return figure
