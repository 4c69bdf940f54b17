"""Measure which `tokens_per_batch` is fastest on this machine, on a suite's own data.

How a step is packed changes the low bits of its sums, so a training never chooses by itself: an exact rerun takes the
number that the suite states, and its manifest records it. This command measures what to state.
"""

import argparse
import logging
import multiprocessing
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prefdag.cli.commands import options
from prefdag.config.sections.preference import Preference
from prefdag.config.suite import read_ordinary_suite
from prefdag.errors import UserError

BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
NEAR = 0.97  # of the fastest: a short measurement does not separate such speeds
WARM_UP, STEPS = 2, 6  # steps that are not timed, and steps in all
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Speed of one measurement, and its peak memory: of the GPU where there is one, else of the process."""

    pairs_per_s: float
    peak_mb: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "suite")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="padded tokens of a micro-batch")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each budget (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Measure every budget once a round; print speed and memory of each, and the line for the suite."""
    suite = read_ordinary_suite(arguments.suite)
    results, budgets = Path("results") / suite.name, sorted(set(arguments.budgets))
    for needed in (results / "prepare/comparisons/train", results / "sft/model"):
        if not needed.is_dir():
            raise UserError(f"{needed}: does not exist yet; run the suite first, at least `sft` and `prepare`")
    timings: dict[int, list[Timing]] = {budget: [] for budget in budgets}
    began, total = time.monotonic(), arguments.rounds * len(budgets)
    for number in range(1, arguments.rounds + 1):
        for budget in budgets:
            done = sum(map(len, timings.values()))
            _say_next(number, arguments.rounds, budget, done, total, time.monotonic() - began)
            timing = _in_new_process(suite.preference, results, budget)
            timings[budget].append(timing)
            speed = f"{timing.pairs_per_s:.1f} pairs/s, {timing.peak_mb:.0f} MB"
            logger.info("  %s", speed)
    _show(timings)
    print(f"preference: {{tokens_per_batch: {best_budget(timings)}}}")
    return 0


def _say_next(number: int, rounds: int, budget: int, done: int, total: int, seconds: float) -> None:
    """Say what is measured now, and about how long the rest takes; each measurement starts a process of its own."""
    rest = f", about {seconds / done * (total - done) / 60:.1f} min to the end" if done else ""
    logger.info("%d of %d: round %d of %d, %d tokens per batch%s", done + 1, total, number, rounds, budget, rest)


def best_budget(timings: Mapping[int, Sequence[Timing]]) -> int:
    """Return the budget with the least memory among those about as fast as the fastest, by medians over the rounds."""
    speed = {budget: statistics.median(one.pairs_per_s for one in rounds) for budget, rounds in timings.items()}
    near = [budget for budget in timings if speed[budget] >= NEAR * max(speed.values())]
    return min(near, key=lambda budget: (statistics.median(one.peak_mb for one in timings[budget]), budget))


def measure(preference: Preference, results: Path, budget: int) -> Timing:
    """Time some steps of DPO on the suite's SFT policy and comparisons, in this process.

    The reference's log-probs are zeros, which take as long as any others. Torch is imported here, so that
    `prefdag tune --help` and the process that waits for this one do without it.
    """
    import torch

    from prefdag.config.objectives import objective
    from prefdag.data.token_store import Store
    from prefdag.data.views import objective_view
    from prefdag.models.loading import load_policy, set_up
    from prefdag.models.logprobs import LogProbs
    from prefdag.models.packing import Segments
    from prefdag.training.loop import train
    from prefdag.training.preference_task import PreferenceTask

    def zeros(ids: Sequence[int], batch: Segments | LogProbs) -> LogProbs:
        return LogProbs(torch.zeros(len(batch.owner), device=batch.owner.device), batch.owner, batch.shape)

    device = set_up(preference.threads, preference.precision)
    dpo = objective({"method": "dpo", "beta": 0.1}, "tune", "dpo")
    store = objective_view(Store.open(results / "prepare/comparisons/train"), dpo)
    model = load_policy(results / "sft/model", device).train()
    length = {"tokens_per_batch": budget, "max_steps": STEPS, "epochs": STEPS}
    settings = preference.model_copy(update={**length, "processes": 1, "nodes": 1, "sharding": "replicated"})
    speeds, began = list[float](), time.perf_counter()
    for step in train(model, store, settings, PreferenceTask(dpo, model, store, zeros)):
        speeds.append(step.num_comparisons / (time.perf_counter() - began))
        began = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return Timing(statistics.median(speeds[WARM_UP:]), peak)


def _in_new_process(preference: Preference, results: Path, budget: int) -> Timing:
    """Measure in a process of its own, whose peak memory is that of this budget alone."""
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as workers:
            return workers.submit(measure, preference, results, budget).result()
    except (UserError, RuntimeError, MemoryError) as error:  # out of memory, in as many forms as there are devices
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"tune: {budget} tokens per batch: {reason}; choose other --budgets") from error


def _show(timings: Mapping[int, Sequence[Timing]]) -> None:
    table = Table("tokens_per_batch", "pairs/s (lowest to highest round)", "peak memory, MB")
    for budget, rounds in timings.items():
        speeds = [one.pairs_per_s for one in rounds]
        speed = f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})"
        table.add_row(str(budget), speed, f"{statistics.median(one.peak_mb for one in rounds):.0f}")
    Console().print(table)
