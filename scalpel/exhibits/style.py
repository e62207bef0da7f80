"""What figures share: how runs look, sizes, and the marks seaborn draws, with standard errors over seeds and questions.

matplotlib and seaborn are imported inside the functions: the report takes runs' labels from here.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from scalpel.config.types import BASE
from scalpel.exhibits import axis
from scalpel.exhibits.options import ExhibitOptions
from scalpel.exhibits.results import final, task_name, task_order
from scalpel.exhibits.uncertainty import joined

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito (2008), told apart by colour-blind readers, too; yellow, which is faint on white, last.
PALETTE = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#707070", "#F0E442")
MARKERS = "ovD^Ps*"  # seven: no divisor of the number of colours, so that a colour's second run has another marker
DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1)),
    (0, (5, 1, 1, 1)),
)  # of lines without markers, of runs of one colour
HATCHES = ("", "////", "....", "xxxx")  # of their bars
WIDTHS = {1: 3.3, 2: 6.8}  # inches of one and two columns of a page
PANEL = {None: 1.0, 1: 0.8, 2: 0.8}  # height of what is drawn there
LEGEND_ROW = 0.17  # inches
BASE_COLOR = "#707070"
DARK = "#303030"


class Style:
    """The looks of the runs shown. A run without a look takes the next colour and marker that no look of the study has.

    looks: the study's, run -> {label, color, marker}, each of which may be None.
    """

    def __init__(self, looks: dict[str, dict], runs: Sequence[str], options: ExhibitOptions):
        self.options, self.looks = options, looks
        self.runs = list(runs)
        self._labels = {run: look.get("label") for run, look in looks.items()} | options.labels
        colors = {BASE: BASE_COLOR} | {run: look["color"].upper() for run, look in looks.items() if look.get("color")}
        self.colors = _completed(self.runs, colors, PALETTE)
        self.markers = _completed(self.runs, {run: look.get("marker") for run, look in looks.items()}, MARKERS)
        before = [[self.colors[other] for other in self.runs[:place]] for place in range(len(self.runs))]
        self.repeats = {run: before[place].count(self.colors[run]) for place, run in enumerate(self.runs)}

    def label(self, run: str) -> str:
        """How people call a run: options.labels, else the study's look, else its name."""
        return self._labels.get(run) or run

    def with_runs(self, labels: dict[str, str]) -> Style:
        """The same looks, and after them those of further runs, by their names in the legend."""
        new = [run for run in labels if run not in self.runs]
        whole = Style(self.looks, [*self.runs, *new], self.options)
        whole._labels |= {run: labels[run] for run in new}
        return whole

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Matplotlib's settings for one figure; also what makes its files the same on every run."""
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(
                {
                    "font.size": self.options.font_size,
                    "axes.titlesize": self.options.font_size,
                    "axes.spines.top": False,
                    "axes.spines.right": False,
                    "axes.grid": True,
                    "axes.axisbelow": True,
                    "grid.color": "#E4E4E4",
                    "grid.linewidth": 0.6,
                    "lines.linewidth": 1.5,
                    "lines.markersize": 4,
                    "legend.frameon": False,
                    "figure.constrained_layout.use": True,
                    "pdf.fonttype": 42,
                    "svg.hashsalt": "scalpel",
                    "svg.fonttype": "path",
                }
            )
            yield

    def in_a_row(self, most: int) -> int:
        """How many panels of `most` stand in a row: two where the figure fills one column, three in two."""
        return min(most, {None: most, 1: 2, 2: 3}[self.options.page_columns])

    def wrapped(self, text: str, letters: int = 16) -> str:
        """A title or an axis' name, in lines of so many letters where panels are as small as in columns of a page."""
        return textwrap.fill(text, letters) if self.options.page_columns else text

    @property
    def legend_columns(self) -> int:
        """How many of the runs' names stand side by side in a column, or two, of a page."""
        return self.names_within(WIDTHS[self.options.page_columns or 2])

    def names_within(self, inches: float) -> int:
        """How many of the runs' names stand side by side in that width; one at least."""
        longest = max(len(self.label(run)) for run in self.runs)
        name = self.options.font_size / 72 * (0.55 * longest + 5)  # inches: letters, and what stands before them
        return max(1, min(len(self.runs), int(inches / name)))

    def figure(self, width: float, height: float, title: str) -> Figure:
        """An empty figure; width and height in inches and the title are defaults that options replace.

        In columns of a page it is as wide as these and lower, with room below for the legend's rows.
        """
        from matplotlib.figure import Figure

        options = self.options
        if options.page_columns:
            width = WIDTHS[options.page_columns]
            height = height * PANEL[options.page_columns] + LEGEND_ROW * -(-len(self.runs) // self.legend_columns)
        figure = Figure(figsize=(options.width_inches or width, options.height_inches or height))
        size = options.font_size + (1.5 if options.page_columns is None else 0.5)
        figure.suptitle(options.title or title, fontsize=size, fontweight="bold", wrap=True)
        return figure

    def label_x(self, of: Axis) -> None:
        """Label a matplotlib axis that shows option x; large counts as 200k, 1M."""
        from matplotlib.ticker import EngFormatter, MaxNLocator

        of.set_label_text(axis.LABELS[self.options.x])
        of.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        if self.options.x != "steps":
            of.set_major_formatter(EngFormatter(sep=""))

    # ------------------------------------------------------------ marks

    def lines(
        self, axes: Axes, frame: pd.DataFrame, y: str, stderr: str | None = None, points: bool = True, **look: Any
    ) -> None:
        """One line per run over column x, the mean over seeds of column `y`, with a band of one standard error.

        frame: columns run, seed, x, `y` and, if the error over questions is known, `stderr`. Where a seed has no
        number there is no point. points: mark each x. look: passed on to matplotlib's lines.
        """
        import seaborn

        means = joined(frame, ["run", "x"], y, stderr).dropna(subset=[y])
        runs = [run for run in self.runs if run in set(means["run"])]
        if not runs:
            return
        before = len(axes.lines)
        seaborn.lineplot(
            means, x="x", y=y, hue="run", hue_order=runs, palette=self.colors, style="run", style_order=runs,
            markers=self.markers if points else False, dashes=False, errorbar=None, ax=axes, legend=False, **look,
        )  # fmt: skip
        for run, line in zip(runs, axes.lines[before:], strict=True):
            if not points and "linestyle" not in look:
                line.set_linestyle(DASHES[self.repeats[run] % len(DASHES)])
            line.set_markeredgecolor(line.get_color())  # seaborn's are white
            if len(cast(Sequence, line.get_xdata())) == 1 and not points:
                line.set_marker("o")  # a line of one point would not be seen
        for run, mean in means.sort_values("x").groupby("run", sort=False):
            # Not seaborn's band: it has none for a single seed, whose error is that over questions.
            low, high = mean[y] - mean["stderr"], mean[y] + mean["stderr"]
            axes.fill_between(mean["x"], low, high, color=self.colors[run], alpha=0.15, linewidth=0)
        axes.set_ylabel("")
        self.label_x(axes.xaxis)

    def bars(self, axes: Axes, frame: pd.DataFrame) -> None:
        """Final scores in percent: a group per task, a bar per run, whiskers of one standard error.

        frame: columns run, seed, step, task, value (0 to 1), stderr; of each run and seed the last step is shown, and
        of each benchmark one level.
        """
        import seaborn

        last = final(drawn(frame))
        means = joined(last, ["run", "task"], "value", "stderr")
        tasks = task_order(means["task"])
        width = 0.84
        seaborn.barplot(
            means.assign(value=100 * means["value"]), x="task", y="value", hue="run", order=tasks, hue_order=self.runs,
            palette=self.colors, saturation=1, width=width, gap=0.06, errorbar=None, ax=axes, legend=False,
        )  # fmt: skip
        places = [
            tasks.index(task) + ((self.runs.index(run) + 0.5) / len(self.runs) - 0.5) * width
            for run, task in zip(means["run"], means["task"], strict=True)
        ]
        for run, bars in zip(self.runs, axes.containers, strict=False):
            for bar in bars if self.repeats[run] else ():
                bar.set(hatch=HATCHES[self.repeats[run] % len(HATCHES)], edgecolor="white", linewidth=0)
        axes.errorbar(places, 100 * means["value"], 100 * means["stderr"], fmt="none", ecolor=DARK, elinewidth=0.8)
        axes.set_xticks(range(len(tasks)), [self.wrapped(task_name(task), 9) for task in tasks])
        axes.set(xlim=(-0.55, len(tasks) - 0.45), ylim=(0, 100), xlabel="", ylabel="score (%)")
        axes.grid(axis="x", visible=False)

    def legend(self, place: Axes | Figure, mark: str = "points", extra: Sequence = (), **where: Any) -> None:
        """A legend of the runs as points, lines or bars, and of `extra` handles. where: for matplotlib's legend."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        def handle(run: str) -> Line2D | Patch:
            color, label = self.colors[run], self.label(run)
            if mark == "bars":
                hatch = HATCHES[self.repeats[run] % len(HATCHES)]
                return Patch(facecolor=color, edgecolor="white" if hatch else color, hatch=hatch, label=label)
            if mark == "points":
                return Line2D([], [], color=color, marker=self.markers[run], label=label)
            return Line2D([], [], color=color, linestyle=DASHES[self.repeats[run] % len(DASHES)], label=label)

        if self.options.page_columns:
            where |= {"loc": "outside lower center"} if str(where.get("loc", "")).startswith("outside") else {}
            where |= {"ncols": self.legend_columns}
        elif "ncols" in where:
            figure = place.get_figure()  # a figure's own is itself
            assert figure is not None
            where["ncols"] = min(where["ncols"], self.names_within(figure.bbox.width / figure.dpi))
        place.legend(handles=[*map(handle, self.runs), *extra], **where)


def drawn(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores as pictures show them: of a benchmark counted by prompts and by single instructions (IFEval), the prompts.

    Both say one thing; tables have both.
    """
    tasks = set(frame["task"])
    single = {task for task in tasks if task.endswith("_instruction")}
    return frame[
        ~frame["task"].isin({task for task in single if f"{task.removesuffix('_instruction')}_prompt" in tasks})
    ]


def _completed(runs: Sequence[str], given: dict[str, str | None], choice: str | tuple[str, ...]) -> dict[str, str]:
    """What the study gives each run, and for the others what it gives none, then all over again."""
    free = [value for value in choice if value not in given.values()]
    missing = [run for run in runs if not given.get(run)]
    return {run: given.get(run) or [*free, *choice * len(missing)][missing.index(run)] for run in runs}
