"""Live curves of a run by transformers' own reporting: TensorBoard, Weights & Biases or Trackio. Off by default.

The result's name with its digest names the run, so whatever resumes it reports to the same one. Nothing of it lies in
the result or enters its digest: what a run leaves is the same, bit by bit, with and without.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scalpel.errors import UserError

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}  # one of each
PROJECT = "scalpel"


def check_tracking(tracking: str) -> None:
    """UserError when the package that reports to this tracker is not installed."""
    packages = PACKAGES.get(tracking, ())
    if packages and not any(map(find_spec, packages)):
        raise UserError(
            f"tracking: {tracking}: the package {packages[0]} is not installed; install it by "
            f"`.venv/bin/python -m pip install {packages[0]}`, or set `tracking: none`."
        )


def tracking_arguments(tracking: str, out: Path) -> dict[str, Any]:
    """TrainingArguments by which the run in `out` reports; what the trackers read of the environment is set."""
    if tracking == "none":
        return {"report_to": "none"}
    logs = Path(os.path.abspath(out)).parents[1] / "logs" / "tracking"
    if tracking == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs / out.name)
    elif tracking == "wandb":
        logs.mkdir(parents=True, exist_ok=True)
        os.environ.update(WANDB_RUN_ID=out.name.rpartition("-")[2], WANDB_RESUME="allow", WANDB_LOG_MODEL="false")
        os.environ.setdefault("WANDB_PROJECT", PROJECT)
        os.environ.setdefault("WANDB_DIR", str(logs))
    found: dict[str, Any] = {"report_to": tracking, "run_name": out.name}
    if tracking == "trackio":  # by default it would be copied to a Space of the hub when the run ends
        found |= {"project": PROJECT, "trackio_space_id": None, "trackio_static_space_id": False}
    return found
