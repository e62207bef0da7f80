"""KL divergence of every checkpoint from the base model, or from the model a run started from."""

from scalpel.exhibits.options import ComparedOptions

READS = ("kl",)
MODEL = {"base": "base model", "start": "model started from"}
DASHED = (0, (3, 1.5))


Options = ComparedOptions


def table(results, options):
    """Columns run, seed, measure, step, x, kl, kl_solution (nats, means over questions), their *_stderr, questions."""
    found = results.compared(options.reference)
    frame = found.placed(found.kl(), options.x).rename(columns={"part": "measure"})
    values = ["kl", "kl_stderr", "kl_solution", "kl_solution_stderr", "questions"]
    return frame[["run", "seed", "measure", "step", "x", *values]]


def draw(frame, options, style):
    """A panel per measure; all positions solid with bands of one standard error, the solution's alone dashed."""
    from matplotlib.lines import Line2D

    measures = list(dict.fromkeys(frame["measure"]))
    figure = style.figure(2.2 + 4.8 * len(measures), 3.8, f"KL divergence from the {MODEL[options.reference]}")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        shown = frame[frame["measure"] == measure]
        style.lines(axes, shown, "kl", "kl_stderr")
        style.lines(axes, shown, "kl_solution", "kl_solution_stderr", linestyle=DASHED, markerfacecolor="white")
        axes.set_title(measure if len(measures) > 1 else "")
        if options.log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    panels[0].set_ylabel(f"KL({options.reference} || checkpoint)\n(nats per position)")
    kinds = [Line2D([], [], color="#303030", label="all positions"),
             Line2D([], [], color="#303030", linestyle=DASHED, label="solution only")]  # fmt: skip
    style.legend(figure, extra=kinds, loc="outside right center")
    return figure
