"""The arms of a cell, each a separate command that prints one JSON line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefdag.errors import UserError

ROOT = Path(__file__).parents[1]
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456"}
LONGEST = 1800.0  # seconds


@dataclass(frozen=True)
class Cell:
    """One model shape and one length profile, written to a folder; options: of every arm's command."""

    shape: str
    profile: str
    task: str
    model: Path
    ids: Path
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.shape}/{self.profile}/{self.task}"


@dataclass(frozen=True)
class Arm:
    """Who runs: prefdag, a rung of its ladder, or TRL.

    per_device: TRL's pairs in a micro-batch; keeping: whether glibc keeps freed pages; tokens: of one forward pass of
    prefdag, 0 for the device's default.
    """

    name: str
    rung: str = ""
    per_device: int = 0
    keeping: bool = False
    tokens: int = 0

    def command(self, cell: Cell, pairs_per_step: int, steps: int, threads: int) -> list[str]:
        shared = ["--task", cell.task, "--model", str(cell.model), "--ids", str(cell.ids)]
        shared += [
            "--pairs-per-step",
            str(pairs_per_step),
            "--steps",
            str(steps),
            "--threads",
            str(threads),
            *cell.options,
        ]
        if self.name.startswith("trl"):
            kind = self.name.removeprefix("trl-")
            return [
                sys.executable,
                "-m",
                "benchmarks.trl_arm",
                "--arm",
                kind,
                "--per-device",
                str(self.per_device),
                *shared,
            ]
        options = ["--rung", self.rung] if self.rung else []
        options += ["--tokens-per-batch", str(self.tokens)] if self.tokens else []
        return [sys.executable, "-m", "benchmarks.micro", *options, *shared]


def run(arm: Arm, cell: Cell, pairs_per_step: int, steps: int, threads: int) -> dict[str, Any]:
    """Run one arm; return what it printed, the machine's speed and its stolen time.

    Raises `UserError` where the arm fails or prints no result; the sentence carries its last line.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "workflow"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **(KEEPING if arm.keeping else {})}
    calibration, before = gemm_gflops(threads), _processor_times()
    command = arm.command(cell, pairs_per_step, steps, threads)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise UserError(f"benchmark: {cell.name}, {arm.name}: no result after {LONGEST:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"benchmark: {cell.name}, {arm.name}: failed ({last[:300]})")
    return {**json.loads(lines[-1]), "gemm_gflops": calibration, "stolen": _stolen(before, _processor_times())}


def gemm_gflops(threads: int, repeats: int = 5) -> float:
    """The machine's speed at this moment, in GFLOP/s: the best of a few products, in float32, on a GPU in bf16."""
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    left, right = torch.randn(2, size, size, dtype=dtype, device="cuda" if cuda else "cpu")
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        left @ right
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e9


def _processor_times() -> dict[str, int]:
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return {}
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return dict(zip(names, map(int, fields), strict=False))


def _stolen(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """The share of processor time between two readings that the hypervisor gave to others."""
    spent = {name: after[name] - before[name] for name in after}
    return spent.get("steal", 0) / max(1, sum(spent.values()))
