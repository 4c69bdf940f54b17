"""Settings that differ between clusters, read by the Slurm profile (profiles/slurm/config.yaml).

A key comes from the environment (PREFDAG_SLURM_<KEY>), from `profiles/slurm/site.yaml`, or has its default.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from prefdag.config.loading import read_yaml
from prefdag.errors import UserError
from prefdag.schema import Count, Section

PREFIX = "PREFDAG_SLURM_"
SITE = Path("profiles/slurm/site.yaml")  # from the clone's root, where the profile runs

# Slurm's own names, and lists of them: nothing that a shell or Snakemake would read as more than a name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:+-]*$")]


class Site(Section):
    """Settings of one cluster; None leaves a setting to the cluster's own default."""

    account: Name | None = Field(None, description="the account to charge")
    partition: Name | None = Field(None, description="the queue")
    qos: Name | None = Field(None, description="quality of service")
    gpu: Name | None = Field(None, description="type of GPU, as `sinfo -o %G` names it")
    scratch: str | None = Field(None, pattern=r"^/[^'\"\n]*$", description="TMPDIR of the jobs, on every node")
    minutes: Count | None = Field(None, description="time limit of the partition")
    notice: Count = Field(
        120, description="seconds before its time limit at which Slurm signals a job to save and stop"
    )


def read_site(path: Path = SITE, environment: Mapping[str, str] = os.environ) -> Site:
    """Read the site of a file; the environment overrides it. Raises `UserError` for an unknown key or a bad value."""
    values = read_yaml(path) if path.is_file() else {}
    Site.parse(values, os.path.relpath(path))
    for key in Site.model_fields:
        if value := environment.get(PREFIX + key.upper()):
            Site.parse({key: value}, PREFIX + key.upper())
            values[key] = value
    return Site.parse(values, os.path.relpath(path))


def site_of_profile() -> Site:
    """Read the site, or print one sentence and exit with 2: Snakemake would wrap an exception in its usage."""
    try:
        return read_site()
    except UserError as mistake:
        print(f"prefdag: {mistake}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
