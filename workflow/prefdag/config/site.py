"""What differs from cluster to cluster: read by the cluster profile (profiles/slurm/config.yaml), before anything else.

A key comes from the environment (PREFDAG_SLURM_<KEY>), or from `site.yaml` beside the profile, or has its default.
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
SITE = Path(__file__).parents[3] / "profiles/slurm/site.yaml"

# Slurm's own names, and lists of them: nothing that a shell or Snakemake would read as more than a name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:+-]*$")]


class Site(Section):
    """Settings of one cluster; None leaves a setting to the cluster's own default."""

    account: Name | None = Field(None, description="who is charged")
    partition: Name | None = Field(None, description="the queue")
    qos: Name | None = Field(None, description="quality of service")
    gpu: Name | None = Field(None, description="type of GPU, as `sinfo -o %G` names it")
    scratch: str | None = Field(None, pattern=r"^/[^'\"\n]*$", description="TMPDIR of the jobs, on every node")
    minutes: Count | None = Field(None, description="the longest that the partition lets a job run")
    notice: Count = Field(120, description="seconds before its time limit at which a job is told to save and stop")


def read_site(path: Path = SITE, environment: Mapping[str, str] = os.environ) -> Site:
    """The site of `path` under what the environment says. Raises `UserError` for a key or value that is none."""
    values = read_yaml(path) if path.is_file() else {}
    Site.parse(values, os.path.relpath(path))
    for key in Site.model_fields:
        if value := environment.get(PREFIX + key.upper()):
            Site.parse({key: value}, PREFIX + key.upper())
            values[key] = value
    return Site.parse(values, os.path.relpath(path))


def site_of_profile() -> Site:
    """The site, or one sentence and exit code 2: Snakemake would wrap an exception in its own usage."""
    try:
        return read_site()
    except UserError as mistake:
        print(f"prefdag: {mistake}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
