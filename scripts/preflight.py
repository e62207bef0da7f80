"""Can the plan run, and what will it cost? python -m scripts.preflight [--scale cluster] [--slurm | --no-slurm]

Nothing is submitted, fetched or written. Exit status 0 without an error, 1 with one; warnings do not count.
"""

import argparse
import os
import sys
import textwrap

from scalpel.artifact.files import ROOT
from scalpel.config.site import Site, load_site
from scalpel.cost.estimate import estimate
from scalpel.cost.render import render
from scalpel.errors import UserError
from scalpel.plan import Plan
from scalpel.plan.feasible import refuse_what_cannot_run
from scalpel.preflight import findings
from scalpel.preflight.finding import ERROR, OK, WARNING, Finding
from scalpel.program import WORKFLOW, configured
from scalpel.retire import refuse_retired


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.preflight", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", help="a scale of workflow/scales; default: config.yaml's")
    parser.add_argument(
        "--slurm", action=argparse.BooleanOptionalAction, help="ask SLURM; default: if it is here and GPUs are needed"
    )
    options = parser.parse_args()
    levels = []

    def show(finding: Finding) -> None:
        levels.append(finding.level)
        lead = f"{finding.level:8}{finding.name:13}"
        print(textwrap.fill(finding.sentence, 110, initial_indent=lead, subsequent_indent=" " * len(lead),
                            break_long_words=False, break_on_hyphens=False), flush=True)  # fmt: skip

    plan, cost, site = None, None, Site()
    try:
        plan = Plan(configured(options.scale), WORKFLOW)
        refuse_what_cannot_run(plan)
        refuse_retired(plan)
        show(Finding("plan", OK, f"Scale {plan.config.scale_name}: {' '.join(plan.config.scale.description.split())}"))
    except UserError as error:
        show(Finding("plan", ERROR, str(error)))
    if plan:
        for name, work in (("cost", lambda: estimate(plan)),
                           ("site", lambda: load_site(ROOT / "slurm" / "site.yaml", os.environ))):  # fmt: skip
            try:
                cost, site = (work(), site) if name == "cost" else (cost, work())
            except UserError as error:
                show(Finding(name, WARNING if name == "cost" else ERROR, str(error)))
        for finding in findings(plan, cost, site, options.slurm):
            show(finding)
        if cost:
            print(f"\n{render(cost)}")
    counts = [f"{levels.count(level)} {level}{'s' if levels.count(level) != 1 else ''}" for level in (ERROR, WARNING)]
    print(f"\n{' and '.join(counts)}.")
    return int(ERROR in levels)


if __name__ == "__main__":
    sys.exit(main())
