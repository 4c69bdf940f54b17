"""Trainings in a crew of processes, as torchrun would start them, forked from one process that has imported torch.

A rank keeps what it saw of a trial in a file of its own: losses, metrics, whole gradients of every step, weights.
"""

import functools
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import PreTrainedModel

from comparisons import comparisons, stored, tiny, tiny_scorer
from loss_family import Live, aligned
from prefdag.config.sections.adapter import Adapter
from prefdag.config.sections.reward import Reward
from prefdag.config.sections.training import Training
from prefdag.data.token_store import Comparison, Comparisons
from prefdag.distributed import fsdp, ranks
from prefdag.distributed.collectives import join
from prefdag.errors import Stopped
from prefdag.models.adapters import attach
from prefdag.models.naive import float64_norms
from prefdag.models.ops.device import Precision, use_precision
from prefdag.models.ops.half_linear import use_half_linears
from prefdag.rewards.model import Scoring
from prefdag.stages import reward
from prefdag.training import loop
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import Batch, Outcome, Trainable, train
from prefdag.training.supervised_task import supervised_task

PRELOADED = [
    "peft",
    "prefdag.training.preference_task",
    "prefdag.stages.reward",
    "torch.distributed.fsdp",
    "torch.distributed.device_mesh",
]
PRELOADED += ["transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "numpy.random"]

Made = tuple[PreTrainedModel, Comparisons, Trainable]


def sft(folder: Path, dtype: torch.dtype = torch.float64) -> Made:
    model, store = tiny(dtype=dtype), stored(folder / "store", comparisons(13, 1))
    return model, store, supervised_task(model, store)


def alignment(name: str, folder: Path, dtype: torch.dtype = torch.float64) -> Made:
    """Comparisons that do not meet (dpo), and losses of whole steps with state, mismatched pairs, or neither."""
    model = tiny(dtype=dtype)
    task = aligned(name, folder, model)
    return model, task.store, task


def repeated(folder: Path, dtype: torch.dtype = torch.float64) -> Made:
    """All three pairs of the three samples of each prompt: a step holds responses several times."""
    model = tiny(dtype=dtype)
    task = aligned("dpo", folder / "other", model)
    samples = comparisons(6, 3)
    pairs = [Comparison(one.prompt, pair) for one in samples for pair in combinations(one.responses, 2)]
    store = stored(folder / "pairs", pairs, None, [row // 3 for row in range(len(pairs))])
    assert task.live is not None
    return model, store, replace(task, store=store, reference=Live(task.live, store))


def bradley_terry(folder: Path, dtype: torch.dtype = torch.float64) -> Made:
    model, store = tiny_scorer().to(dtype), stored(folder / "store", comparisons(13, 3))
    settings = Reward(batch_size=5, learning_rate=1e-2)
    return model, store, loop.Task(functools.partial(reward.losses, model, store, settings, Scoring()), len)


def adapted(make: Callable[..., Made], folder: Path, dtype: torch.dtype = torch.float64) -> Made:
    """A training of an adapter that has changed its model already: both of its factors have a gradient."""
    model, store, task = make(folder, dtype)
    attach(model, Adapter(rank=3, alpha=6), seed=0)
    random = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=random).to(parameter.dtype)
    return model, store, task


TRAININGS: dict[str, Callable[..., Made]] = {
    "sft": sft,
    "reward": bradley_terry,
    "dpo repeated": repeated,
    **{name: functools.partial(alignment, name) for name in ("dpo", "aot", "kto", "bco", "tdpo2")},
    "dpo adapter": functools.partial(adapted, functools.partial(alignment, "dpo")),
    "reward adapter": functools.partial(adapted, bradley_terry),
}


@dataclass
class Interrupted:
    """A training whose last rank gets SIGTERM in the middle of a step."""

    task: Trainable
    at: int

    def accumulate(self, batch: Batch, state: dict[str, float]) -> Outcome:
        if batch.number == self.at and ranks.rank() == ranks.num_ranks() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.task.accumulate(batch, state)


@dataclass(frozen=True)
class Trial:
    """One training. twin: the broken one, a mean over ranks; stop: the step, from 0, in which it is stopped."""

    of: str
    sharded: bool = False
    dtype: torch.dtype = torch.float64
    budget: int = 40
    optimizer: str = "adamw"
    steps: int = 3
    batch_size: int = 5
    group: Literal["prompt"] | None = None
    twin: bool = False
    precision: Precision | None = None
    stop: int | None = None
    resumed: Path | None = None

    def run(self, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True)
        use_precision(self.precision)
        model, store, task = TRAININGS[self.of](folder, self.dtype)
        if self.precision == "bfloat16":
            use_half_linears(model)
        sharded = self.sharded and ranks.num_ranks() > 1
        settings = Training(
            batch_size=self.batch_size, learning_rate=1e-2, max_steps=self.steps, epochs=9, max_grad_norm=0.5,
            tokens_per_batch=self.budget, optimizer=self.optimizer, weight_decay=0.1, processes=ranks.num_ranks(),
            sharding="sharded" if sharded else "replicated", group=self.group,
        )  # fmt: skip
        checkpoint = None if self.resumed is None else Checkpoint(self.resumed)
        result: dict[str, Any] = {"losses": [], "metrics": [], "norms": [], "gradients": [], "stopped": None}
        with watched_gradients(result["gradients"]), float64_norms(), broken(self.twin):
            try:
                trainable = task if self.stop is None else Interrupted(task, self.stop)
                for step in train(model, store, settings, trainable, checkpoint):
                    result["losses"].append(step.loss)
                    result["norms"].append(step.grad_norm)
                    result["metrics"].append({**step.metrics, **step.state})
            except Stopped as stop:
                result["stopped"] = str(stop)
            result["weights"] = {name: value.clone() for name, value in fsdp.full_tensor(model.state_dict()).items()}
        held = [fsdp.local_shard(parameter).numel() for parameter in model.parameters()]
        return {**result, "held": sum(held)}


@contextmanager
def watched_gradients(seen: list[Tensor]) -> Iterator[None]:
    """Note the whole gradient of every step as one row, before it is clipped."""
    clipped = loop.clip_gradients

    def watching(parameters: Sequence[Any], most: float) -> float:
        parts = [fsdp.full_tensor(parameter.grad) for parameter in parameters if parameter.grad is not None]
        seen.append(torch.cat([part.flatten() for part in parts]).clone())
        return clipped(parameters, most)

    with patch.object(loop, "clip_gradients", watching):
        yield


@contextmanager
def broken(twin: bool) -> Iterator[None]:
    """Where `twin`, gradients are averaged over the ranks, as DDP does."""
    right = fsdp.all_reduce_sum

    def mean(tensor: Tensor) -> None:
        right(tensor)
        tensor /= ranks.num_ranks()

    with patch.object(fsdp, "all_reduce_sum", mean if twin else right):
        yield


def _work(number: int, size: int, port: int, trials: dict[str, Trial], folder: Path) -> None:
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
        join()
    for name, trial in trials.items():
        result = trial.run(folder / f"{name}-{size}-{number}")
        torch.save(result, folder / f"{name}-{size}-{number}.pt")


def crew(size: int, trials: dict[str, Trial], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run the trials in `size` processes; what each rank saw of each, by the trial's name."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [context.Process(target=_work, args=(number, size, port, trials, folder)) for number in range(size)]
    for member in members:
        member.start()
    for member in members:
        member.join(timeout=600)
    assert [member.exitcode for member in members] == [0] * size
    return {name: [torch.load(folder / f"{name}-{size}-{rank}.pt") for rank in range(size)] for name in trials}
