"""Measure every cell once, across interruptions, and write the tables and the figure."""

import importlib.metadata
import itertools
import json
import platform
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.arms import Arm, Cell
from benchmarks.cells import OURS, Length, best, interleaved, ratios
from benchmarks.config import Benchmark
from benchmarks.page import as_markdown, speedups
from benchmarks.shapes import vocabulary, write_ids, write_model
from benchmarks.work import with_work
from prefdag.errors import UserError
from prefdag.reporting.figures.style import save_figure

RUNGS = ("naive", "sorted", "completion", "packed", "shared")  # the product itself is the arm `prefdag`


def measure_cells(settings: Benchmark, folder: Path) -> pd.DataFrame:
    """A row for each run of each arm. Cells that `folder` holds already are not measured again.

    Raises `UserError` where TRL is asked for and missing, or an arm fails.
    """
    if settings.trl:
        _check_peer()
    folder.mkdir(parents=True, exist_ok=True)
    cells_file = folder / "cells.jsonl"
    cells = [json.loads(line) for line in cells_file.read_text().splitlines()] if cells_file.exists() else []
    done = [name for name, _ in cells]
    for cell in _cells(settings, folder, done):
        records = []
        for record in _runs_of(cell, settings):
            records.append(record)
            speed = f"{record['pairs_per_s']:.2f} pairs/s"
            print(f"benchmark: {cell.name}, {record['arm']}, round {record['round'] + 1}: {speed}", flush=True)
        cells.append((cell.name, records))
        (partial := cells_file.with_suffix(".part")).write_text("".join(json.dumps(each) + "\n" for each in cells))
        partial.replace(cells_file)
    runs = pd.DataFrame([record for _, records in cells for record in records])
    return with_work(runs, settings.steps * settings.pairs_per_step)


def write_results(runs: pd.DataFrame, settings: Benchmark, output: Path) -> pd.DataFrame:
    """Write runs.csv, losses.csv, ratios.csv, benchmarks.md and figures/speedups.png; returns the ratios."""
    ratio_table = ratios(runs)
    runs.drop(columns=["losses", "grad_norms"]).to_csv(output / "runs.csv", index=False)
    _losses(runs).to_csv(output / "losses.csv", index=False)
    ratio_table.to_csv(output / "ratios.csv", index=False)
    versions = {name: _version(name) for name in ("torch", "transformers", "trl")}
    page = as_markdown(ratio_table, runs, settings, {**versions, "python": platform.python_version()})
    (output / "benchmarks.md").write_text(page)
    (output / "figures").mkdir(parents=True, exist_ok=True)
    png, svg = save_figure(speedups(ratio_table))
    (output / "figures" / "speedups.png").write_bytes(png)
    (output / "figures" / "speedups.svg").write_bytes(svg)
    return ratio_table


def _check_peer() -> None:
    for name in ("trl", "accelerate"):
        if _version(name) == "missing":
            raise UserError(f"benchmark: {name} is not installed; `pip install -e '.[bench]'`, or set `trl: false`")


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
        options = ("--clock", settings.clock, *(("--precision", settings.precision) if settings.precision else ()))
        cells = [Cell(*names, folder / shape, folder / f"{shape}-{names[1]}.jsonl", options) for names in of_shape]
        if waiting := [cell for cell in cells if cell.name not in done]:
            write_model(shape, folder / shape)
        for cell in waiting:
            write_ids(cell.profile, vocabulary(shape), num, cell.ids)
            yield cell
        shutil.rmtree(folder / shape, ignore_errors=True)


def _runs_of(cell: Cell, settings: Benchmark) -> Iterator[dict[str, Any]]:
    length = Length(settings.rounds, settings.steps, settings.pairs_per_step, settings.threads)
    tokens = settings.tokens_per_batch or 0
    arms = [Arm(OURS, tokens=tokens)]
    if settings.ladder and cell.task == "dpo":
        arms += [Arm(rung, rung=rung, tokens=tokens) for rung in RUNGS]
    if settings.trl:
        tried = [(size, keeping) for size in settings.per_device for keeping in settings.keeping]
        # On CUDA TRL reads response positions alone by itself.
        kinds = ("tuned", "patched") if cell.task == "dpo" and not torch.cuda.is_available() else ("tuned",)
        arms += [Arm("trl-defaults", per_device=min(8, settings.pairs_per_step))]
        arms += [best(cell, f"trl-{kind}", tried, length) for kind in kinds]
    if settings.liger:
        arms += [Arm("trl-liger", per_device=arms[-1].per_device, keeping=arms[-1].keeping)]
    return interleaved(cell, arms, length)


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
