"""Measure which `tokens_per_batch` is fastest on this machine, on a suite's own data.

How a step is packed changes the low bits of its sums, so a training never chooses by itself: an exact rerun takes the
number that the suite states, and its manifest has it. This command measures what to state, for a device and a model.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from prefdag.cli.commands import options
from prefdag.config.suite import Suite, read_ordinary_suite
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.seeds import generator

BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
NEAR = 0.97  # of the fastest: as fast, for all that a short measurement tells
STEPS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "suite")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="padded tokens of a micro-batch")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each budget (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Time some steps of DPO at each budget, a process each, in turn; print pairs per second, memory and the choice."""
    suite = read_ordinary_suite(arguments.suite)
    num = suite.preference.batch_size
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.jsonl"
        results = Path("results") / suite.name
        _write_ids(results / "prepare/comparisons/train", ids, num * STEPS)
        budgets = sorted(set(arguments.budgets))
        turns = [budget for _ in range(arguments.rounds) for budget in budgets]
        found: dict[int, list[dict[str, Any]]] = {budget: [] for budget in budgets}
        for budget in track(
            turns, f"{len(budgets)} budgets, {arguments.rounds} rounds", disable=not sys.stderr.isatty()
        ):
            found[budget].append(_timed(suite, results / "sft/model", ids, budget))
    _show(found)
    print(f"preference: {{tokens_per_batch: {chosen(found)}}}")
    return 0


def chosen(found: Mapping[int, Sequence[dict[str, Any]]]) -> int:
    """The budget of the least memory among those that are as fast as the fastest, by medians over the rounds."""
    speed = {budget: statistics.median(one["pairs_per_s"] for one in runs) for budget, runs in found.items()}
    near = [budget for budget in found if speed[budget] >= NEAR * max(speed.values())]
    return min(near, key=lambda budget: (statistics.median(one["peak_rss_mb"] for one in found[budget]), budget))


def _write_ids(folder: Path, ids: Path, num: int) -> None:
    """Some comparisons of the suite as `prefdag bench` reads them. Raises `UserError` where there are none yet."""
    if not (folder / "offsets.npy").is_file():
        raise UserError(f"{folder} is not there yet; run the suite until its SFT policy and comparisons are made")
    store = Store.open(folder)
    with ids.open("w") as stream:
        for index in generator(0, "tune").permutation(len(store))[:num]:
            one = store[int(index)]
            sides = [part.tolist() for part in (one.prompt, one.responses[0], one.responses[-1])]
            stream.write(json.dumps(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), sides, strict=True))) + "\n")


def _timed(suite: Suite, model: Path, ids: Path, budget: int) -> dict[str, Any]:
    settings = suite.preference
    command = [sys.executable, "-m", "prefdag", "bench", "--model", str(model), "--ids", str(ids)]
    command += ["--tokens-per-batch", str(budget), "--pairs-per-step", str(settings.batch_size)]
    done = subprocess.run(
        [*command, "--threads", str(settings.threads), "--steps", str(STEPS)], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"tune: {budget} tokens: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _show(found: Mapping[int, Sequence[dict[str, Any]]]) -> None:
    table = Table("tokens_per_batch", "pairs/s (lowest to highest round)", "peak memory, MB")
    for budget, runs in found.items():
        speeds = [one["pairs_per_s"] for one in runs]
        peak = statistics.median(one["peak_rss_mb"] for one in runs)
        speed = f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})"
        table.add_row(str(budget), speed, f"{peak:.0f}")
    Console().print(table)
