"""Disk, time and what must be fetched, against the estimate of a plan."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from scalpel.cost.estimate import Cost, Row
from scalpel.cost.render import size
from scalpel.plan import Plan
from scalpel.preflight.finding import ERROR, OK, WARNING, Finding, some

NETWORK_SECONDS = 5.0


def disk(root: Path, cost: Cost) -> Iterator[Finding]:
    """Free bytes and files of the disk of results/, against the plan's."""
    place = root / "results"
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    quota = "A quota is not seen from here."
    if free < cost.least:
        sentence = (
            f"{size(free)} are free at results/, {size(cost.least)} are needed even with one run after the other; "
        )
        yield Finding("disk", ERROR, sentence + "free some or make results a link to a larger disk.")
    elif free < cost.peak:
        sentence = f"{size(free)} are free at results/, enough for one training run after the other but not for all at "
        yield Finding(
            "disk", WARNING, f"{sentence}once ({size(cost.peak)}); start snakemake with fewer --jobs. {quota}"
        )
    else:
        yield Finding("disk", OK, f"{size(free)} are free at results/, at most {size(cost.peak)} are needed. {quota}")
    state = os.statvfs(place)
    if state.f_files and state.f_favail < cost.files:
        sentence = f"{state.f_favail:,} more files fit on the disk of results/, some {cost.files:,} are needed; "
        yield Finding("files", ERROR, sentence + "remove old results or use another disk.")
    else:
        left = f"{state.f_favail:,} more files fit" if state.f_files else "The disk sets no limit"
        yield Finding("files", OK, f"{left}; some {cost.files:,} are needed.")


def time_limits(cost: Cost) -> Iterator[Finding]:
    """Jobs whose estimate exceeds the time they may run; those of one length, as seeds are, together."""
    alike: dict[tuple, list[Row]] = {}
    for row in cost.rows:
        if row.hours and row.longest > row.limit:
            alike.setdefault((row.stage, f"{row.longest:.1f}", f"{row.limit:g}", row.again), []).append(row)
    for (stage, hours, limit, again), rows in alike.items():
        rest = (
            f"a job will be queued again {'once' if again == 1 else f'{again} times'}"
            if stage == "train"
            else "its jobs start over when they are ended: raise it, or `evaluation_shards`"
        )
        label = f"{stage} {', '.join(row.name for row in rows)}".strip()
        sentence = (
            f"{label}: estimated at {hours} h a job, which may run {limit} h (resources.{stage}.runtime); {rest}."
        )
        yield Finding("time limit", WARNING, sentence)


def reachable(plan: Plan, environ: Mapping[str, str]) -> Finding:
    """Whether what is still to be fetched can be had from here."""
    wanted = [step for step in plan.missing() if step.stage == "fetch"]
    if not wanted:
        return Finding("model, data", OK, "Nothing is left to fetch: all of it lies in results/ or in local files.")
    for step in wanted:
        if step.recipe["revision"] is None:
            field = f"overrides: {{datasets: {{{step.name}: {{source: {{revision: <40 digits>}}}}}}}}"
            return Finding(
                "model, data",
                ERROR,
                f"No commit of {step.recipe['repo']} is named: give one, `{field}`, or a copy's path.",
            )
    names = some(sorted({step.recipe["repo"] for step in wanted}))
    offline = next((k for k in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if environ.get(k, "").upper() in TRUE), None)
    if offline:
        return Finding("model, data", ERROR, f"{offline} is set, but {names} are not fetched yet; unset it.")
    endpoint = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=NETWORK_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code == 407:
            return Finding(
                "model, data", ERROR, f"{endpoint} answers with status {error.code}; {names} cannot be had now."
            )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Finding(
            "model, data",
            ERROR,
            f"{endpoint} is not reached from here ({reason}), and {names} are not fetched yet; run `make fetch` on a "
            "node with network, such as the login node, or give local files.",
        )
    gated = " Idavidrein/gpqa is gated: accept its terms and log in first." if "Idavidrein/gpqa" in names else ""
    return Finding(
        "model, data",
        OK,
        f"{endpoint} is reached from here; run `make fetch` here before the jobs, for compute nodes often have no "
        f"network ({names}).{gated}",
    )


TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its switches
