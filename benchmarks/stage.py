"""The benchmark: cells times arms, interleaved, to tables and a figure."""

from typing import Any

import pandas as pd

from benchmarks.config import Benchmark
from benchmarks.whole import measured, written
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section


class Job(Section):
    benchmark: Benchmark


def run(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Measure every cell and write runs.csv, losses.csv, ratios.csv, benchmarks.md and figures/speedups.png.

    It takes hours: a cell that was measured is kept, and a run that follows a stopped one goes on with the next cell.
    """
    runs = measured(job.benchmark, workspace.resume)
    found = written(runs, job.benchmark, workspace.output)
    for name in ("runs.csv", "ratios.csv", "benchmarks.md", "figures/speedups.png"):
        workspace.journal.artifact(workspace.output / name, name)
    facts = {f"{task}_over_{arm}": _geometric_mean(part) for (task, arm), part in found.groupby(["task", "arm"])}
    workspace.results(facts)
    return facts


def _geometric_mean(part: pd.DataFrame) -> float:
    return float(part["speedup"].product() ** (1 / len(part)))
