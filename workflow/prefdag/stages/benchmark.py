"""The benchmark: cells times arms, interleaved, to tables and a figure."""

import importlib.metadata
import itertools
import json
import platform
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.benchmark.arms import PEER, Arm, Cell
from prefdag.benchmark.cells import OURS, Length, best, measured, ratios
from prefdag.benchmark.page import as_markdown, speedups
from prefdag.benchmark.shapes import vocabulary, write_ids, write_model
from prefdag.benchmark.work import with_work
from prefdag.config.benchmark import Benchmark
from prefdag.config.section import Section
from prefdag.errors import UserError
from prefdag.figures import rendered
from prefdag.stage import Workspace

RUNGS = ("naive", "sorted", "completion", "packed", "shared")  # the product itself is the arm `prefdag`


class Job(Section):
    benchmark: Benchmark


def run(job: Job, here: Workspace) -> dict[str, Any]:
    """Measure every cell and write runs.csv, losses.csv, ratios.csv, benchmarks.md and figures/speedups.png.

    It takes hours: a cell that was measured is kept, and a run that follows a stopped one goes on with the next cell.
    """
    settings = job.benchmark
    if settings.trl:
        _check_peer()
    here.resume.mkdir(parents=True, exist_ok=True)
    kept = here.resume / "cells.jsonl"
    cells = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = [name for name, _ in cells]
    for cell in _cells(settings, here.resume, done):
        records = []
        for record in _measured(cell, settings):
            records.append(record)
            speed = f"{record['pairs_per_s']:.2f} pairs/s"
            print(f"benchmark: {cell.name}, {record['arm']}, round {record['round'] + 1}: {speed}", flush=True)
        cells.append((cell.name, records))
        (partial := kept.with_suffix(".part")).write_text("".join(json.dumps(each) + "\n" for each in cells))
        partial.replace(kept)
    runs = pd.DataFrame([record for _, records in cells for record in records])
    runs = with_work(runs, settings.steps * settings.pairs_per_step)
    found = ratios(runs)
    runs.drop(columns=["losses", "grad_norms"]).to_csv(here.output / "runs.csv", index=False)
    _losses(runs).to_csv(here.output / "losses.csv", index=False)
    found.to_csv(here.output / "ratios.csv", index=False)
    versions = {name: _version(name) for name in ("torch", "transformers", "trl")}
    page = as_markdown(found, runs, settings, {**versions, "python": platform.python_version()})
    (here.output / "benchmarks.md").write_text(page)
    (here.output / "figures").mkdir()
    png, svg = rendered(speedups(found))
    (here.output / "figures" / "speedups.png").write_bytes(png)
    (here.output / "figures" / "speedups.svg").write_bytes(svg)
    for name in ("runs.csv", "ratios.csv", "benchmarks.md", "figures/speedups.png"):
        here.journal.artifact(here.output / name, name)
    facts = {f"{task}_over_{arm}": _geometric_mean(part) for (task, arm), part in found.groupby(["task", "arm"])}
    here.results(facts)
    return facts


def _check_peer() -> None:
    if not PEER.is_file():
        raise UserError(f"{PEER}: the peer's script is missing; run the benchmark from a checkout")
    for name in ("trl", "accelerate"):
        if _version(name) == "missing":
            raise UserError(f"benchmark: {name} is not installed; `pip install -e '.[bench]'`, or benchmark.trl: false")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _cells(settings: Benchmark, folder: Path, done: Collection[str]) -> Iterator[Cell]:
    """Every shape, profile and task but those done; a shape's weights are removed before the next one's are written."""
    num = settings.steps * settings.pairs_per_step
    for shape in settings.shapes:
        of_shape = itertools.product((shape,), settings.profiles, settings.tasks)
        cells = [Cell(*names, folder / shape, folder / f"{shape}-{names[1]}.jsonl") for names in of_shape]
        if waiting := [cell for cell in cells if cell.name not in done]:
            write_model(shape, folder / shape)
        for cell in waiting:
            write_ids(cell.profile, vocabulary(shape), num, cell.ids)
            yield cell
        shutil.rmtree(folder / shape, ignore_errors=True)


def _measured(cell: Cell, settings: Benchmark) -> Iterator[dict[str, Any]]:
    length = Length(settings.rounds, settings.steps, settings.pairs_per_step, settings.threads)
    arms = [Arm(OURS)]
    if settings.ladder and cell.task == "dpo":
        arms += [Arm(rung, rung=rung) for rung in RUNGS]
    if settings.trl:
        tried = [(size, keeping) for size in settings.per_device for keeping in settings.keeping]
        kinds = ("tuned", "patched") if cell.task == "dpo" else ("tuned",)
        arms += [Arm("trl-defaults", per_device=min(8, settings.pairs_per_step))]
        arms += [best(cell, f"trl-{kind}", tried, length) for kind in kinds]
    return measured(cell, arms, length)


def _losses(runs: pd.DataFrame) -> pd.DataFrame:
    """Each arm's first run, step by step."""
    first = runs[runs["round"] == 0]
    keys = ["shape", "profile", "task", "arm"]
    rows = [
        {**{key: getattr(row, key) for key in keys}, "step": step, "loss": loss, "grad_norm": norm}
        for row in first.itertuples()
        for step, (loss, norm) in enumerate(zip(row.losses, row.grad_norms, strict=True), start=1)
    ]
    return pd.DataFrame(rows, columns=[*keys, "step", "loss", "grad_norm"])


def _geometric_mean(part: pd.DataFrame) -> float:
    return float(part["speedup"].product() ** (1 / len(part)))
