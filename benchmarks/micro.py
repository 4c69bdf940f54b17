"""Measure pairs per second, memory and losses of one task: `python -m benchmarks.micro --model DIR --ids FILE`.

Each line of --ids is `{"prompt_ids": [...], "chosen_ids": [...], "rejected_ids": [...]}`; steps take the pairs in the
order of the file, whose further pairs are not read. Prints one JSON line. The first steps warm up and are not timed.
"""

import argparse
import importlib.metadata
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.ladder import RUNGS, trained
from benchmarks.memory import Phase
from prefdag.config.objectives import objective
from prefdag.config.sections.training import Training
from prefdag.data.rows import read_rows
from prefdag.data.token_store import Comparison, Store, StoreWriter
from prefdag.errors import UserError
from prefdag.losses.registry import loss_of
from prefdag.losses.reward_model import bradley_terry
from prefdag.models.loading import load_policy, load_scorer, set_up
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.ops.device import Precision, autocast, compute_dtype, to_device
from prefdag.models.packing import Segments, pack, step_members
from prefdag.models.repeats import iter_packed
from prefdag.rewards.model import RewardModel, initial_heads
from prefdag.training.loop import Losses, Task, Trainable, train
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.reference_cache import write_cache
from prefdag.training.supervised_task import supervised_task

TASKS = ("dpo", "reward", "reference", "sft")
PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")
WARM_UP = 2
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Taken = tuple[float, float]  # an optimizer step's loss and gradient norm
# Padded tokens of one forward. On CPU as fast as 2,048 and more, with half the memory; a GPU wants to be filled.
BUDGETS = {"cpu": 512, "cuda": 16384}


def main(argv: list[str] | None = None) -> int:
    """Measure one task and print one JSON line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--ids", type=Path, required=True, help="JSON lines of prompt_ids, chosen_ids, rejected_ids")
    parser.add_argument("--task", choices=TASKS, default="dpo")
    parser.add_argument("--pairs-per-step", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens-per-batch", type=int, default=BUDGETS["cuda" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: of the process, on a shared core")
    parser.add_argument("--precision", choices=get_args(Precision), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--rung", choices=tuple(RUNGS), help="of DPO, a plainer form of the step, to measure against")
    arguments = parser.parse_args(argv)
    for name in ("pairs_per_step", "steps", "threads", "tokens_per_batch"):
        if getattr(arguments, name) < 1:
            raise UserError(f"bench --{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}")
    if arguments.rung and arguments.task != "dpo":
        raise UserError(f"bench --rung: the rungs are of --task dpo, got {arguments.task}")
    if arguments.rung and arguments.precision == "bfloat16":
        raise UserError("bench --rung: the rungs compute in float32; leave --precision out")
    if arguments.rung and torch.cuda.is_available():
        raise UserError("bench --rung: the rungs run on a CPU; set CUDA_VISIBLE_DEVICES= to leave the GPU alone")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(arguments, Path(folder))), flush=True)
    return 0


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the task; `start_rss_mb` is what stood before the first step, `peak_rss_mb` the most from there on."""
    device = set_up(arguments.threads, arguments.precision)
    num = arguments.pairs_per_step
    store = store_of(arguments.ids, folder, num, 1 if arguments.task == "sft" else 2, arguments.steps)
    reward = arguments.task == "reward"
    model = load_scorer(arguments.model, device, new_heads=1) if reward else load_policy(arguments.model, device)
    phase = Phase()
    if arguments.task == "reference":
        seconds, steps = _reference_pass(model, store, arguments, phase), list[Taken]()
    elif arguments.rung:
        seconds, steps = _climbed(model, store, arguments, phase)
    else:
        seconds, steps = _training(model, store, arguments, _task(model, store, arguments, folder), phase)
    timed = seconds[min(WARM_UP, len(seconds) - 1) :]
    return {
        "task": arguments.task,
        "pairs_per_s": num / statistics.median(timed),
        "pairs_per_s_quartiles": [num / float(np.quantile(timed, q)) for q in (0.75, 0.25)],
        "peak_rss_mb": phase.peak_mb,
        "start_rss_mb": phase.start_mb,
        "peak_cuda_mb": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
        "losses": [loss for loss, _ in steps],
        "grad_norms": [norm for _, norm in steps],
        "device": str(device),
        "precision": str(compute_dtype(device)).removeprefix("torch."),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def store_of(ids: Path, folder: Path, pairs_per_step: int, num_responses: int, steps: int | None = None) -> Store:
    """A token store whose seeded order of training (seed 0) is the order of the file.

    steps: how many read it; None: as many as it has pairs for.

    Raises `UserError` for a line without the three lists, or fewer pairs than a step takes.
    """
    read = itertools.islice(read_rows(ids), None if steps is None else steps * pairs_per_step)
    rows = [_parts(row, f"{ids}: row {number}") for number, row in enumerate(read)]
    if len(rows) < pairs_per_step:
        raise UserError(f"{ids}: holds {len(rows)} pairs, a step takes {pairs_per_step}; lower --pairs-per-step")
    rows = rows[: len(rows) // pairs_per_step * pairs_per_step]
    num = len(rows) // pairs_per_step
    order = np.concatenate([step_members(step, len(rows), pairs_per_step, 0) for step in range(num)])
    placed = [rows[index] for index in np.argsort(order)]
    with StoreWriter(folder / "store", num_responses, scored=False) as writer:
        for index, (prompt, *responses) in enumerate(placed):
            writer.add(prompt, responses[:num_responses], row=index, prompt=index)
    return Store.open(folder / "store")


def _parts(row: dict[str, Any], where: str) -> list[list[int]]:
    for name in PARTS:
        part = row.get(name)
        if not isinstance(part, list) or not part or not all(isinstance(token, int) for token in part):
            raise UserError(f"{where}: {name}: expected a list of at least one token id, got {str(part)[:40]}")
    return [row[name] for name in PARTS]


def _training(
    model: Any, store: Store, arguments: argparse.Namespace, task: Trainable, phase: Phase
) -> tuple[list[float], list[Taken]]:
    """Seconds, and loss and gradient's norm, of each optimizer step."""
    settings = Training(
        batch_size=arguments.pairs_per_step,
        epochs=10**6,
        max_steps=len(store) // arguments.pairs_per_step,
        learning_rate=arguments.learning_rate,
        schedule="constant",
        tokens_per_batch=arguments.tokens_per_batch,
        threads=arguments.threads,
    )
    seconds, steps, now = list[float](), list[Taken](), CLOCKS[arguments.clock]
    _begin(phase)
    began = now()
    for step in train(model.train(), store, settings, task):
        seconds.append(now() - began)
        steps.append((step.loss, step.grad_norm))
        began = now()
    return seconds, steps


def _climbed(model: Any, store: Store, arguments: argparse.Namespace, phase: Phase) -> tuple[list[float], list[Taken]]:
    """The same training by one rung of the ladder; its reference log-probs are the product's."""
    num = arguments.pairs_per_step
    pairs, references = [], []
    for number in range(len(store) // num):
        step = [store[int(index)] for index in step_members(number, len(store), num, 0)]
        pairs.append(step)
        references.append(_reference_of(model, step))
    loss = loss_of(objective({"method": "dpo", "beta": arguments.beta}, "bench", "dpo"))
    seconds, steps, now = list[float](), list[Taken](), CLOCKS[arguments.clock]
    _begin(phase)
    began = now()
    rate, budget = arguments.learning_rate, arguments.tokens_per_batch
    for taken in trained(model.train(), pairs, references, loss, arguments.rung, budget, rate):
        seconds.append(now() - began)
        steps.append(taken)
        began = now()
    return seconds, steps


@torch.no_grad()
def _reference_of(model: Any, step: Sequence[Comparison]) -> list[torch.Tensor]:
    """Log-probs of each comparison's response tokens: [n_w + n_l]."""
    return [logprobs(model, pack([comparison])).tokens for comparison in step]


def _task(model: Any, store: Store, arguments: argparse.Namespace, folder: Path) -> Trainable:
    match arguments.task:
        case "dpo":
            write_cache(model.eval(), store, folder / "reference.npy", arguments.tokens_per_batch)
            values, starts = np.load(folder / "reference.npy", mmap_mode="r"), store.response_starts()

            def cached(ids: Sequence[int], batch: Segments | LogProbs) -> LogProbs:
                tokens = np.concatenate([values[starts[index] : starts[index + 1]] for index in ids])
                return LogProbs(to_device(torch.from_numpy(tokens), batch.owner.device), batch.owner, batch.shape)

            loss = objective({"method": "dpo", "beta": arguments.beta}, "bench", "dpo")
            return PreferenceTask(loss, model.train(), store, cached)
        case "reward":
            initial_heads(model, 0.02, (0,))
            rewards = RewardModel((model,))

            def of_rewards(ids: Sequence[int], segments: Segments) -> Losses:
                return bradley_terry(rewards(segments)), {}

            return Task(of_rewards, len)
        case _:
            return supervised_task(model.train(), store)


@torch.no_grad()
def _reference_pass(model: Any, store: Store, arguments: argparse.Namespace, phase: Phase) -> list[float]:
    """Seconds of each step's pairs: the forward pass alone."""
    seconds, device, now = list[float](), next(model.parameters()).device, CLOCKS[arguments.clock]
    _begin(phase)
    num = arguments.pairs_per_step
    for step in range(len(store) // num):
        ids = step_members(step, len(store), num, 0)
        began = now()
        for _, segments in iter_packed([store[int(index)] for index in ids], arguments.tokens_per_batch):
            with autocast(device):
                logprobs(model, segments.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(now() - began)
    return seconds


def _begin(phase: Phase) -> None:
    """The steps begin: their memory, and CUDA's, is measured from here on."""
    phase.begin()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        print(f"benchmarks.micro: {mistake}", file=sys.stderr)
        sys.exit(2)
