"""Published courses beside ours: which are shown, under which name, and where their checkpoints stand on the x axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalpel.config.load import nearest
from scalpel.errors import UserError

if TYPE_CHECKING:
    from scalpel.exhibits.options import BesideOptions
    from scalpel.exhibits.results import Results

OURS, PUBLISHED = "ours", "published"  # in column `source`


def courses(results: Results, section: str, options: BesideOptions) -> dict[str, tuple[dict, list[float]]]:
    """Run as it is shown -> its published course in this section, and where each of the course's steps stands.

    Empty where the axis is one of which published runs say nothing (tokens, flops), and where checkpoints are compared
    with what a run started from. Raises UserError for an option that names no published run.
    """
    there = results.published.get(section, {})
    for name in (*options.published_as.values(), *options.also_published):
        if name not in there:
            raise UserError(f"published_as, also_published: no published run is named {name!r}{nearest(name, there)}.")
    if options.reference != "base" or options.x not in ("steps", "questions"):
        return {}
    named = {run: options.published_as.get(run, run) for run in results.runs} | {n: n for n in options.also_published}
    asked = results.published.get("questions_per_step", {})
    found = {}
    for run, theirs in named.items():
        if theirs in there and (options.x == "steps" or theirs in asked):
            times = asked[theirs] if options.x == "questions" else 1
            found[run] = there[theirs], [times * step for step in there[theirs]["steps"]]
    return found
