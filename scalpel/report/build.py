"""The report: one HTML page that holds everything, figures included, and loads nothing from elsewhere."""

import base64
import csv
import os
import statistics
import uuid
from collections.abc import Iterable
from html import escape
from pathlib import Path

from scalpel.errors import UserError
from scalpel.figures import results
from scalpel.report import claims
from scalpel.report.evidence import measured, published

CAPTIONS = {
    "grpo_rewards": ("1", "Accuracy and format reward of GRPO, means over each step's completions."),
    "sft_loss": ("2", "Loss and gradient norm of SFT."),
    "benchmarks": ("3", "Benchmark scores: final checkpoints with one standard error, and all checkpoints."),
    "kl": ("4", "KL(base || checkpoint) on MATH-500 problems and solutions, means over positions, then questions."),
    "norms_grpo": ("5", "Relative weight change under GRPO. Its scale is not that of SFT's figure."),
    "norms_sft": ("6", "Relative weight change under SFT. Its scale is not that of GRPO's figure."),
    "freezing": ("7", "Benchmark scores of SFT with parts of the model frozen, final checkpoints."),
}
COMPARED = {"benchmarks": ("base", "grpo", "sft_1ep", "sft_3ep", "sft_matched"),
            "freezing": ("base", "sft_3ep", "sft_frozen_mlp", "sft_qk_only")}  # fmt: skip
LAPTOP = """
<p><strong>This is a scaled replica, not the paper's experiment.</strong> A toy model of some 0.6 million
parameters, trained from nothing on a generated world, goes through the paper's whole pipeline: the same filter,
trainers, harnesses and analyses, on two CPU cores. There is <strong>one seed</strong>; standard errors cover
the questions drawn, never the training.</p>
<p><strong>What it shows:</strong> that the pipeline works end to end, and which of the paper's qualitative claims
also appear in a model this small. <strong>What it does not show:</strong> anything about a 7B model, real
mathematics or real knowledge. Benchmarks bear the names of the sets whose format and harness they share; their
questions are generated, so scores beside the paper's are for orientation and must not be compared as
numbers.</p>"""
OTHER_SCALES = """
<p><strong>One seed.</strong> Standard errors cover the questions drawn and the sampling, never the training.
A difference that one seed shows need not appear with another.</p>"""
CSS = """
:root { color-scheme: light dark;
  --text: #1c1c1c; --paper: #ffffff; --faint: #5c5c5c; --line: #d5d5d5; --box: #f4f4f2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --paper: #161718; --faint: #a5a5a5; --line: #3b3d40; --box: #222426; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper);
  max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0; } h2 { margin: 2.5rem 0 .6rem; border-bottom: 1px solid var(--line); } h3 { margin: 1.8rem 0 .4rem; }
.faint { color: var(--faint); font-size: .88rem; }
.note { background: var(--box); border-left: 4px solid #0072b2; padding: .4rem 1rem; margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: var(--box); } .paper { color: var(--faint); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; padding: .3rem; box-sizing: border-box; }
.verdict { white-space: nowrap; font-weight: 600; }
pre { white-space: pre-wrap; font-size: .8rem; background: var(--box); padding: .6rem; }
"""
MARKS = {claims.APPEARS: "✓", claims.ABSENT: "✗", claims.UNTESTABLE: "–"}


def build(
    inputs: dict[str, list[Path]], figures: dict[str, Path], published_numbers: dict, facts: dict, out: Path
) -> None:
    """Write the page `out` (index.html), atomically.

    inputs: result directories by ``stage/run``; figures: PNG files by figure name, in the order shown.
    published_numbers: content of a file of workflow/published, or empty.
    facts: title, scale, description, runs (recipes), evaluation (recipe), study, digest, commit.
    Raises UserError naming the result or figure that is missing or damaged.
    """
    ours, theirs = measured(inputs), published(published_numbers)
    parts = [
        f"<h1>{escape(facts['title'])}</h1>",
        f'<p class="faint">Scale {escape(facts["scale"])}: {escape(facts["description"])}</p>',
        f'<div class="note">{LAPTOP if facts["scale"] == "laptop" else OTHER_SCALES}</div>',
        "<h2>Which of the paper's claims appear</h2>",
        claims_section(ours, theirs),
        "<h2>Figures beside the paper's numbers</h2>",
        f'<p class="faint">The paper\'s numbers: {escape(published_numbers["source"])}.</p>'
        if published_numbers.get("source")
        else "",
        *(figure_section(name, path, inputs, ours, theirs) for name, path in figures.items()),
        "<h2>Data</h2>",
        *(drops_section(directory) for directory in inputs.get("data/data", [])),
        "<h2>Set-up</h2>",
        setup_section(facts),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(facts["title"])}</title>'
        f"<style>{CSS}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def claims_section(ours: claims.Evidence, theirs: claims.Evidence) -> str:
    rows, counts = [], dict.fromkeys(MARKS, 0)
    for claim in claims.CLAIMS:
        here, there = claim.outcome(ours), claim.outcome(theirs)
        counts[here.verdict] += 1
        unpublished = there.verdict == claims.UNTESTABLE and "±" not in there.measured
        rows.append(
            [
                f'{escape(claim.text)}<br><span class="faint">{escape(claim.section)}</span>',
                escape(claim.test),
                escape(here.measured),
                f'<span class="verdict">{MARKS[here.verdict]} {here.verdict}</span>',
                '<span class="faint">not tested: the paper gives no numbers for this test</span>'
                if unpublished
                else f'<span class="faint">{there.verdict}: {escape(there.measured)}</span>',
            ]
        )
    summary = (
        f"{counts[claims.APPEARS]} appear here, {counts[claims.ABSENT]} do not, "
        f"{counts[claims.UNTESTABLE]} cannot be tested here"
    )
    head = ["Claim", "Test", "Measured here", "Verdict here", "The same test on the paper's numbers"]
    return (
        f"<p>{len(rows)} claims: {summary}. A difference of scores counts beyond {claims.SIGMAS:g} standard errors; "
        "within them the verdict is “cannot be tested here”. Differences are in percentage points.</p>"
        + table(head, rows, numeric=False)
    )


def figure_section(name: str, path: Path, inputs: dict, ours: claims.Evidence, theirs: claims.Evidence) -> str:
    try:
        image = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        raise UserError(f"{path} is missing; run snakemake for figure {name}.") from None
    number, caption = CAPTIONS.get(name, ("", name))
    beside = ""
    if name in COMPARED:
        beside = scores_table(COMPARED[name], ours, theirs)
    elif name == "kl":
        beside = kl_table(inputs, theirs)
    elif name in ("norms_grpo", "norms_sft"):
        beside = norms_table("grpo" if name == "norms_grpo" else "sft_3ep", ours, theirs)
    elif name in ("grpo_rewards", "sft_loss"):
        beside = curves_table(name, ours)
    title = f"Figure {number}" if number else name
    return (
        f'<h3 id="{escape(name)}">{title}</h3><p>{escape(caption)}</p>'
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{image}">{beside}'
    )


def scores_table(runs: Iterable[str], ours: claims.Evidence, theirs: claims.Evidence) -> str:
    """Percent, ours with one standard error, the paper's in grey below."""
    runs = [run for run in runs if run in ours.scores or run in theirs.scores]
    tasks = [
        task for task in results.TASKS if any(task in e.scores.get(run, {}) for run in runs for e in (ours, theirs))
    ]
    rows = []
    for task in tasks:
        cells = [escape(results.TASKS[task])]
        for run in runs:
            here, there = ours.scores.get(run, {}).get(task), theirs.scores.get(run, {}).get(task)
            text = f"{100 * here.value:.1f} ± {100 * here.stderr:.1f}" if here else "not run"
            grey = f"{100 * there.value:.1f} ± {100 * there.stderr:.1f}" if there else "none"
            cells.append(f'{text}<br><span class="paper">{grey}</span>')
        rows.append(cells)
    return table(["Final score, %", *runs], rows) + (
        '<p class="faint">First line: measured here. Second line, grey: the paper, with binomial standard errors.</p>'
    )


def kl_table(inputs: dict, theirs: claims.Evidence) -> str:
    rows = []
    for run in [*results.runs_of(inputs, "kl"), *(run for run in theirs.kl if f"kl/{run}" not in inputs)]:
        here = results.kl(inputs[f"kl/{run}"]).iloc[-1] if f"kl/{run}" in inputs else None
        curve = theirs.kl.get(run)
        cells = ["not run", ""] if here is None else [
            f"{here[column]:.4f} ± {here[column + '_stderr']:.4f}" for column in ("kl", "kl_solution")
        ]  # fmt: skip
        rows.append([escape(run), *cells, f'<span class="paper">{curve[max(curve)]:.3f}</span>' if curve else ""])
    head = ["KL of the last checkpoint, nats", "all positions", "solution only", "the paper, all positions"]
    return table(head, rows) + (
        '<p class="faint">± is the standard error over questions. The paper computed in bf16 and gives no '
        "solution-only value. All positions include the system prompt, the same in every question: the longer it is "
        "(one token here at laptop scale), the more its memorisation weighs. sft_lr_1e-6 is the authors' "
        "unreported SFT at GRPO's learning rate.</p>"
    )


def norms_table(run: str, ours: claims.Evidence, theirs: claims.Evidence) -> str:
    if run not in ours.change:
        return ""
    here, there = claims.type_means(ours.change[run]), claims.type_means(theirs.change.get(run, {}))
    rows = [
        [escape(name), f"{here[p]:.5f}", rank(here, p), f'<span class="paper">{there[p]:.5f}</span>' if there else "",
         f'<span class="paper">{rank(there, p)}</span>' if there else ""]
        for p, name in results.PROJECTION_LABELS.items() if p in here
    ]  # fmt: skip
    head = [f"Relative change, mean over layers ({run})", "here", "rank", "the paper", "rank"]
    return table(head, rows)


def rank(means: dict[str, float], projection: str) -> str:
    return str(1 + sorted(means, key=lambda p: -means[p]).index(projection))


def curves_table(name: str, ours: claims.Evidence) -> str:
    columns = {"grpo_rewards": ("accuracy_reward", "format_reward"), "sft_loss": ("loss", "grad_norm")}[name]
    rows = []
    for run in ours.log:
        if (name == "sft_loss") == ("accuracy_reward" in ours.log[run]) or columns[0] not in ours.log[run]:
            continue
        for column in columns:
            values = ours.log[run][column]
            count = max(1, len(values) // 10)
            first, last = statistics.fmean(values[:count]), statistics.fmean(values[-count:])
            rows.append([escape(run), column, str(len(values)), f"{first:.3f}", f"{last:.3f}"])
    head = ["Run", "Quantity", "steps", "first tenth", "last tenth"]
    return table(head, rows, numeric=range(2, 5)) + '<p class="faint">The paper shows these as curves only.</p>'


def drops_section(directory: Path) -> str:
    """Rows by what became of them; UserError when they do not add up to the rows read."""
    path = directory / "drops.csv"
    try:
        with open(path, newline="") as file:
            found = [(row["reason"], int(row["rows"]), row.get("meaning") or "") for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is missing or damaged; delete {directory} and run snakemake again.") from None
    total = sum(count for reason, count, _ in found if reason != "read")
    read = [count for reason, count, _ in found if reason == "read"]
    if read and read[0] != total:
        raise UserError(f"{path}: {total} rows are accounted for and {read[0]} were read; run the data stage again.")
    rows = [
        [escape(reason), f"{count:,}", f"{count / max(total, 1):.1%}", escape(meaning)]
        for reason, count, meaning in found
        if reason != "read"
    ]
    rows.append(["<strong>all rows read</strong>", f"<strong>{total:,}</strong>", "100.0%", "the lines above add up"])
    text = "What the filter did with each row of the source. A row counts for the first reason that applies to it."
    return f"<p>{text}</p>" + table(["Reason", "rows", "share", "Meaning"], rows, numeric=(1, 2))


def setup_section(facts: dict) -> str:
    """Recipes of the runs side by side: one line per field on which they differ, then the shared ones."""
    runs = facts["runs"]
    fields = list(dict.fromkeys(name for recipe in runs.values() for name in recipe))
    values = {name: [show(recipe.get(name)) for recipe in runs.values()] for name in fields}
    differing = [[escape(name), *values[name]] for name in fields if len(set(values[name])) > 1]
    shared = ", ".join(f"{name} {values[name][0]}" for name in fields if len(set(values[name])) == 1)
    evaluated = facts["evaluation"]["tasks"]
    keys = list(dict.fromkeys(key for options in evaluated.values() for key in options))
    tasks = [[escape(task), *(show(options.get(key)) for key in keys)] for task, options in evaluated.items()]
    rest = ", ".join(f"{escape(k)} {show(v)}" for k, v in facts["evaluation"].items() if k != "tasks")
    origin = ", ".join(f"{key} {escape(str(facts[key]))}" for key in ("study", "scale", "digest", "commit"))
    return (
        table(["Training", *map(escape, runs)], differing, numeric=False)
        + f'<p class="faint">The same in all runs: {shared}.</p>'
        + table(["Evaluation", *(escape(key.replace("_", " ")) for key in keys)], tasks)
        + f'<p class="faint">{rest}. Made by: {origin}.</p>'
    )


def show(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return escape(", ".join(f"{k} {v}" for k, v in value.items() if v)) or "all"
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def table(head: Iterable[str], rows: list[list[str]], numeric: bool | Iterable[int] = True) -> str:
    """HTML table of ready cells; `numeric` names the right-aligned columns (True: all but the first)."""
    head = list(head)
    right = set(range(1, len(head))) if numeric is True else set(numeric or ())

    def line(cells, tag):
        return "".join(f"<{tag}{' class=n' if i in right else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'
