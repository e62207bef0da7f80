"""Print the model card of a finished run's checkpoint: python -m scripts.card RUN [--step 100] [--seed 42]

Nothing is written; `make push` uploads it with the checkpoint.
"""

import argparse

from scalpel.card import Shared, card, shared
from scalpel.config.load import nearest
from scalpel.errors import UserError
from scalpel.plan import Plan
from scalpel.program import WORKFLOW, configured, end_with
from scripts.show import find


def options(program: str, description: str) -> argparse.ArgumentParser:
    """The words by which a checkpoint is named."""
    parser = argparse.ArgumentParser(prog=f"python -m scripts.{program}", description=description)
    parser.add_argument("run", help="a run, or <study>/<run>")
    parser.add_argument("--scale", help="a scale of workflow/scales; default: config.yaml's")
    parser.add_argument("--seed", type=int, help="default: the run's first")
    parser.add_argument("--step", type=int, help="optimizer steps of the checkpoint; default: the last")
    return parser


def checkpoint(asked: argparse.Namespace) -> Shared:
    """The checkpoint that the words name."""
    plan = Plan(configured(asked.scale), WORKFLOW)
    study, name = find(plan, asked.run)
    seeds = plan.config.studies[study].runs[name].seeds
    if asked.seed is not None and asked.seed not in seeds:
        raise UserError(f"run {name!r} has no seed {asked.seed}{nearest(str(asked.seed), map(str, seeds))}.")
    return shared(plan, plan.run(study, name, seeds[0] if asked.seed is None else asked.seed), asked.step)


def main() -> int:
    print(card(checkpoint(options("card", __doc__.splitlines()[0]).parse_args())), end="")
    return 0


if __name__ == "__main__":
    end_with(main)
