"""Figures by name: what each needs, its options, and rendering. One module of this package per figure.

`NEEDS` says, per figure, which stages it reads and the runs it shows unless a study names others.
Neither torch nor matplotlib is imported until `render` is called: the plan imports this package.
"""

from __future__ import annotations

import importlib
import json
import os
import uuid
from pathlib import Path

from scalpel.errors import UserError
from scalpel.figures.options import FigureOptions, options

__all__ = ["NEEDS", "FigureOptions", "needs", "options", "render"]

SFT_RUNS = ("sft_1ep", "sft_3ep", "sft_matched")
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpo_rewards": ("train", ("grpo",)),
    "sft_loss": ("train", SFT_RUNS),
    "benchmarks": ("evaluate", ("base", "grpo", *SFT_RUNS)),
    "kl": ("kl", ("grpo", *SFT_RUNS)),
    "norms_grpo": ("weight_change", ("grpo",)),
    "norms_sft": ("weight_change", ("sft_3ep",)),
    "freezing": ("evaluate", ("base", "sft_3ep", "sft_frozen_mlp", "sft_qk_only")),
}


def needs(name: str, runs: list[str], shown: tuple[str, ...] = ()) -> list[str]:
    """Roles ``stage/run`` that figure `name` reads, of a study with these `runs`.

    `shown` is the figure's option `runs`; empty, the runs of the paper's figure that the study has.
    Raises UserError for an unknown figure, a run that is not of the study, or when no run is left to show.
    """
    if name not in NEEDS:
        raise UserError(f"no figure is called {name!r}; there are {', '.join(NEEDS)}.")
    stage, default = NEEDS[name]
    known = {*runs, "base"} if stage == "evaluate" else set(runs)
    unknown = [run for run in shown if run not in known]
    if unknown:
        raise UserError(f"figure {name!r}: runs: {unknown[0]!r} is not a run of this study.")
    chosen = [run for run in shown or default if run in known]
    if not set(chosen) - {"base"}:
        raise UserError(f"figure {name!r}: none of {', '.join(default)} is a run of this study; name some in `runs`.")
    return [f"{stage}/{run}" for run in chosen]


def render(name: str, inputs: dict[str, list[Path]], options: FigureOptions, target: Path, provenance: dict) -> None:
    """Draw figure `name` and write `target`.pdf, .png and .svg, each atomically and reproducibly.

    `inputs` maps ``stage/run`` to result directories. `provenance` (JSON) is embedded as the PDF's Keywords,
    a PNG text chunk called Provenance, and the SVG's description.
    """
    from scalpel.figures import style

    figure = importlib.import_module(f"scalpel.figures.{name}")
    text = json.dumps(provenance, sort_keys=True, default=str)
    title = options.title or name
    metadata = {
        "pdf": {"Title": title, "Subject": f"Scalpel figure {name}", "Keywords": text, "CreationDate": None},
        "png": {"Title": title, "Provenance": text, "Software": "Scalpel"},
        "svg": {"Title": title, "Description": text, "Date": None},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with style.applied(options):
        drawn = figure.draw(inputs, options)
        for kind, entries in metadata.items():
            path = target.with_name(f"{target.name}.{kind}")
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            try:
                drawn.savefig(temporary, format=kind, metadata=entries, dpi=options.dpi)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
