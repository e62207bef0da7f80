"""The cost estimate as a table with its totals, the assumptions, and the arithmetic of every row."""

from __future__ import annotations

import textwrap

from scalpel.cost.amount import number
from scalpel.cost.estimate import Cost, Row


def size(value: float) -> str:
    """Bytes for people: 292 GB (10^9)."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e3:.0f} kB"


def render(cost: Cost) -> str:
    """The table with its totals, the assumptions, and the arithmetic of every row."""
    if not cost.rows:
        return f"Nothing to pay for: all {cost.finished} results are finished."
    on_gpus = any(row.gpus for row in cost.rows)
    head = ["stage", "run", "jobs", "GPUs", "longest job", "its limit", "GPU-hours", "at the limits", "stays", "state"]
    shown: list[list[str]] = []
    for stage in dict.fromkeys(row.stage for row in cost.rows):
        of_stage = [row for row in cost.rows if row.stage == stage]
        shown += map(_cells, of_stage)
        if len(of_stage) > 1:
            shown.append(_sum(f"{stage}, all", of_stage))
    shown.append(_sum("total", cost.rows))
    if not on_gpus:
        head, *shown = ([*cells[:3], *cells[8:]] for cells in (head, *shown))
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    text = [_line(cells, widths) for cells in (head, ["-" * width for width in widths], *shown)]
    text.append("")
    if on_gpus:
        text += _wrapped(
            f"About {cost.gpu_hours:,.0f} GPU-hours. If every job ran into its time limit, as SLURM reserves it: "
            f"{cost.reserved:,.0f}."
        )
    text += _wrapped(
        f"On disk {size(cost.kept)} stay; up to {size(cost.peak)} while all training runs are under way at once "
        f"({size(cost.least)} one after the other). Resumable state is removed when its run ends."
    )
    if cost.finished:
        text.append(f"{cost.finished} results are finished and not counted.")
    text += ["", "Assumptions"]
    for sentence in cost.assumptions:
        text += _wrapped(sentence, "  - ")
    text += ["", "Arithmetic of each row"]
    for what, runs in _arithmetic(cost.rows).items():
        text += _wrapped(f"{', '.join(runs)}: {what}", "  ")
    if on_gpus and any(row.stage == "evaluate" for row in cost.rows):
        text += ["", "Tokens of one checkpoint's evaluation: questions x tokens"]
        for task in cost.tasks:
            written = f"; written {task.written.text} = {number(task.written.value)}" if task.written.value else ""
            text.append(f"  {task.name}: read {task.read.text} = {number(task.read.value)}{written}")
    return "\n".join(text)


def _arithmetic(rows: list[Row]) -> dict[str, list[str]]:
    """Lines of arithmetic, each with the rows it holds for."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        label = f"{row.stage} {row.name}".strip()
        if row.hours:
            hours = number(round(row.hours.value, 4))
            gpu_hours = number(round(row.gpu_hours, 3))
            lines[f"hours = {row.hours.text} = {hours}; GPU-hours = {hours} x {row.gpus} = {gpu_hours}"] = [label]
    for what in ("kept", "running"):
        for row in rows:
            amount = getattr(row, what)
            if amount.value:
                named = "bytes that stay" if what == "kept" else "bytes of state"
                line = f"{named} = {amount.text} = {number(amount.value)}"
                lines.setdefault(line, []).append(f"{row.stage} {row.name}".strip())
    return lines


def _wrapped(text: str, lead: str = "") -> list[str]:
    return textwrap.wrap(
        text, 110, initial_indent=lead, subsequent_indent=" " * (len(lead) + 2 * bool(lead)), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _line(cells: list[str], widths: list[int]) -> str:
    """Two columns of names, then numbers."""
    names = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*names, *numbers]).rstrip()


def _cells(row: Row) -> list[str]:
    cells = [row.stage, row.name, str(row.jobs), str(row.gpus or "-")]
    if row.hours:
        cells += [f"{row.longest:.2f} h", f"{row.limit:g} h", f"{row.gpu_hours:,.1f}", f"{row.reserved:,.0f}"]
    else:
        cells += ["-", f"{row.limit:g} h", "-", "-"]
    return [*cells, size(row.kept.value), size(row.running.value) if row.running.value else "-"]


def _sum(label: str, rows: list[Row]) -> list[str]:
    hours = [f"{sum(r.gpu_hours for r in rows):,.1f}", f"{sum(r.reserved for r in rows):,.0f}"]
    running = sum(r.running.value for r in rows)
    bytes_ = [size(sum(r.kept.value for r in rows)), size(running) if running else "-"]
    return [label, "", str(sum(r.jobs for r in rows)), "", "", "", *hours, *bytes_]
