"""Where SLURM jobs go (slurm/site.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict

from scalpel.config.load import read_yaml, validated
from scalpel.config.types import Positive, Strict


class Site(Strict):
    """Where SLURM jobs go. SCALPEL_ACCOUNT, SCALPEL_GPU_PARTITION, ... in the environment win."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    account: str | None = None  # None: the user's default account
    partition: str | None = None  # of jobs without GPUs; None: the cluster's default
    gpu_partition: str | None = None  # of jobs with GPUs; None: the cluster's default
    qos: str | None = None
    gpu_model: str | None = None  # as the cluster calls it in gres, h100; None: any
    constraint: str | None = None  # of jobs with GPUs
    max_runtime: Positive | None = (
        None  # minutes; a retried job asks for more time (scalpel/launch/attempts.py), up to this
    )
    max_mem_mb: Positive | None = None  # likewise


def load_site(path: Path, environment: Mapping[str, str]) -> Site:
    """slurm/site.yaml with what SCALPEL_<FIELD> in the environment says instead; an empty value means none."""
    raw = read_yaml(path)
    for field in Site.model_fields:
        name = f"SCALPEL_{field.upper()}"
        if name in environment:
            raw[field] = environment[name] or None
    return validated(Site, raw, "slurm/site.yaml")
