"""The stages of the experiment, one line each: what the plan, the rules, the cost estimate and the programs agree on.

A stage's program is scripts/<stage>.py and takes one argument, the result directory. Adding a stage: its line here,
its program, and, where the plan needs it, the steps made of it. Raise a version when the meaning of the stage's results
changes: all its digests follow, and those of what is made from them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Stage(NamedTuple):
    """version: part of every digest. local: runs where Snakemake runs, never as a SLURM job. resumable: what an
    interrupted start left is resumed from, not removed. cost: the function of scalpel/cost/estimate.py that
    says what its jobs cost on GPUs; a stage that never reserves one needs none. reads: which checkpoints of a run it
    reads, the last one, all, or those its recipe lists (roles `checkpoints` and `other`). evidence: what a failed
    start wrote stays to be read until the next one.
    """

    version: int
    local: bool = False
    resumable: bool = False
    cost: str | None = None
    reads: Literal["last", "all", "listed"] = "last"
    evidence: bool = False


STAGES: dict[str, Stage] = {
    "fetch": Stage(1, local=True, resumable=True),  # a model or dataset of the hub; compute nodes may have no network
    "toy": Stage(2),  # the generated world
    "base": Stage(1, resumable=True),  # a base model with its tokenizer and chat template
    "questions": Stage(1),  # one question set, checked and laid out for its harness
    "data": Stage(2),  # the rows that are trained on, and why each other row is not
    "order": Stage(1),  # in which order they are asked
    "generate": Stage(3, resumable=True, cost="generate"),  # a model's own answers to them
    "common": Stage(1),  # rows that several sources have answers to
    "trace": Stage(1, cost="trace"),  # causal tracing of facts
    "audit": Stage(2, cost="audit", evidence=True),  # probes of the installed stack: a gate of training, no input of it
    "train": Stage(2, resumable=True, cost="train"),  # the method's own version counts, too
    "given": Stage(2),  # checkpoints made elsewhere
    "evaluate": Stage(4, cost="evaluate", reads="listed"),  # one group of benchmarks on a share of a run's checkpoints
    "kl": Stage(1, cost="kl", reads="all"),
    "weight_change": Stage(2, reads="all"),
    "structure": Stage(2, cost="structure", reads="listed"),  # sparsity, rank and spectrum of updates
}
EXHIBIT, REPORT = "exhibit", "report"  # no results with digests in their names; their versions:
SHOWN = {EXHIBIT: 1, REPORT: 1}
