"""A small project whose stages can be run, disturbed and inspected, for the trials of `faults.py`.

Every stage is a real process: `python -m prefdag <stage> ...` in a folder of its own, cold, or forked from a warm
server as `snakemake` has it. The server's trainings save their state every 0.05 s, not every minute.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import ROOT, environment
from judge_server import Judge, judging
from prefdag.provenance.manifest import read_manifest

SECONDS_BETWEEN_STATES = 0.05
SERVER = f"""
import os, sys
from importlib import import_module
from pathlib import Path
from prefdag.training import checkpoint
from prefdag.runtime import warm_start
for stage in ("pretrain", "sft", "reward", "preference", "generate", "judge", "score", "reference", "pairs", "prepare"):
    import_module(f"prefdag.stages.{{stage}}")
checkpoint.Checkpoint.__init__.__defaults__ = ({SECONDS_BETWEEN_STATES},)
warm_start.serve(Path(sys.argv[1]), int(sys.argv[2]), "prefdag.cli.main:main")
"""
R = "results/small"
STEPS = 60
PREPARE = {"adapter": "world", "template": "continuation", "bos": True, "end_of_turn": "eos", "over_long": "drop"}
PREPARE |= {"max_prompt_tokens": 64, "max_response_tokens": 200}
SHAPE = {"architecture": "llama", "vocab_size": 500, "hidden_size": 32, "layers": 1, "heads": 2, "context": 256}
WORLD = {"reviews": 1500, "validation_reviews": 30, "train_prompts": 24, "validation_prompts": 8, "test_prompts": 16}
TRAINING = {"max_steps": STEPS, "epochs": 99, "learning_rate": 1e-3}
JUDGE = {"judges": [{"model": "longer", "prompt": "summarisation-simple", "concurrency": 2}], "bootstrap": 50}


@dataclass(frozen=True)
class Command:
    """One stage's job. inputs: option -> folder below results; config: of --config."""

    folder: str
    config: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return self.folder.partition("/")[0]

    def arguments(self) -> list[str]:
        options = [text for name, at in self.inputs.items() for text in (f"--{name}", f"{R}/{at}/manifest.json")]
        output = ["--output", f"{R}/{self.folder}/manifest.json"]
        return [self.stage, "--config", json.dumps(self.config), *options, *output]


SAMPLED = {"policy": "sft", "comparisons": "prepare/comparisons"}
SAMPLING = {"generate": {"max_new_tokens": 64, "num_samples": 8}}
CHAIN = [
    Command("fetch/data", {"data": {"source": "world", "world": WORLD}}),
    Command(
        "pretrain",
        {"adapter": "world", "scratch": SHAPE, "pretrain": {**TRAINING, "batch_size": 32, "learning_rate": 1e-2}},
        {"data": "fetch/data"},
    ),
    Command(
        "prepare/demonstrations",
        {"dataset": "demonstrations", "prepare": PREPARE},
        {"rows": "fetch/data", "tokenizer": "pretrain"},
    ),
    Command(
        "sft", {"sft": {**TRAINING, "batch_size": 4}}, {"base": "pretrain", "demonstrations": "prepare/demonstrations"}
    ),
    Command(
        "pairs",
        {"pairs": {"num_samples": 4, "max_new_tokens": 128}, "prepare": PREPARE},
        {"policy": "sft", "rows": "fetch/data"},
    ),
    Command(
        "prepare/comparisons",
        {"dataset": "comparisons", "prepare": PREPARE},
        {"rows": "pairs", "tokenizer": "pretrain", "demonstrations": "prepare/demonstrations"},
    ),
    Command("reward", {"reward": {**TRAINING, "batch_size": 2}}, SAMPLED),
    Command("reference/comparisons", {"reference": {}}, SAMPLED),
    Command(
        "preference/dpo",
        {"objective": {"method": "dpo", "beta": 0.1}, "preference": {**TRAINING, "batch_size": 2}},
        {**SAMPLED, "reference": "reference/comparisons"},
    ),
    Command("generate/sft", SAMPLING, SAMPLED),
    Command("generate/dpo", SAMPLING, {**SAMPLED, "policy": "preference/dpo"}),
    *(
        Command(
            f"score/{name}",
            {"score": {"reward": "vader", "bootstrap": 50}},
            {"generations": f"generate/{name}", "policy": policy, "reference": "sft", "reward": "reward"},
        )
        for name, policy in (("sft", "sft"), ("dpo", "preference/dpo"))
    ),
    Command(
        "judge/dpo",
        {"judge": JUDGE},
        {
            "scores": "score/dpo",
            "against": "score/sft",
            "generations": "generate/dpo",
            "against_generations": "generate/sft",
        },
    ),
]
BY_FOLDER = {command.folder: command for command in CHAIN}
UNDER_TEST = {"pretrain": "pretrain", "sft": "sft", "reward": "reward", "preference": "preference/dpo"}
TRAININGS = tuple(UNDER_TEST)
UNDER_TEST |= {"generate": "generate/dpo", "judge": "judge/dpo"}


@dataclass
class Job:
    """A stage's process and its output."""

    process: subprocess.Popen[str]

    def end(self, patience: float = 300) -> tuple[int, str]:
        """Wait for the end; return exit code and output."""
        printed = self.process.communicate(timeout=patience)[0]
        return self.process.returncode, printed


@dataclass
class Bench:
    """The small project, run to its end undisturbed, in `base`."""

    base: Path
    variables: dict[str, str]
    judge: Judge

    def start(self, folder: Path, arguments: list[str], *, cold: bool = False, before: str = "") -> Job:
        """Start a stage in `folder`. before: shell commands in front of it, for a cold start."""
        variables = {**self.variables, "OPENAI_BASE_URL": self.judge.address, "OPENAI_API_KEY": "-"}
        command = [sys.executable, "-m", "prefdag", *arguments]
        if cold:
            del variables["PREFDAG_WARM"]
            command = ["bash", "-c", f'{before}exec "$@"', "-", *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return Job(subprocess.Popen(command, cwd=folder, env=variables, **pipes))

    def copy(self, target: Path, without: str) -> None:
        """Copy the finished project to a folder, without a stage's output, its journals and the judge's answers."""
        shutil.copytree(self.base / R, target / R, ignore=shutil.ignore_patterns(".journal", ".judge"))
        shutil.rmtree(target / R / without)

    def expected(self, folder: str) -> bytes:
        return (self.base / R / folder / "manifest.json").read_bytes()


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Make the project in `folder`: a warm server, an endpoint for the judge, and every stage once."""
    socket = folder / "warm"
    variables = {**environment(), "PYTHONPATH": f"{ROOT / 'workflow'}", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with (folder / "warm.log").open("w") as log:
        command = [sys.executable, "-c", SERVER, str(socket), str(os.getpid())]
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        while not socket.exists():
            assert server.poll() is None, (folder / "warm.log").read_text()
            time.sleep(0.05)
        with judging(delay=0.01) as judge:
            made = Bench(folder / "base", {**variables, "PREFDAG_WARM": str(socket)}, judge)
            made.base.mkdir()
            for command in CHAIN:
                code, printed = made.start(made.base, command.arguments()).end()
                assert code == 0, f"{command.folder}: {printed}"
            yield made
    finally:
        server.terminate()
        server.wait()


def events(folder: Path, stage: str) -> list[dict[str, Any]]:
    """What the newest journal of a stage holds so far."""
    paths = sorted((folder / R / ".journal").glob(f"{stage}-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    lines = paths[-1].read_bytes().split(b"\n")[:-1] if paths else []
    return [json.loads(line) for line in lines]


def steps_taken(folder: Path, stage: str) -> int:
    return max((event["step"] or 0 for event in events(folder, stage) if event["event"] == "metrics"), default=0)


def wait_for_start(folder: Path, stage: str, job: Job) -> int | None:
    """The process that does the work, as soon as its journal names it; None if it ended before anyone looked."""
    while job.process.poll() is None:
        if journal := events(folder, stage):
            return int(journal[0]["pid"])
        time.sleep(0.002)
    return None


def limit(process: int, what: int, amount: int) -> None:
    """Lower a limit of a running process."""
    with suppress(ProcessLookupError):
        resource.prlimit(process, what, (amount, amount))


def address_space(process: int) -> int:
    """Bytes of virtual memory that a process has now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def whole(manifest: Path) -> bool:
    """Whether every file that a manifest lists is there as it says."""
    read_manifest(manifest).check(lambda name: True)
    return True


def send(job: Job, number: signal.Signals) -> None:
    if job.process.poll() is None:
        job.process.send_signal(number)


def can_mount() -> str | None:
    """None where small file systems can be mounted, else why not."""
    if os.geteuid() != 0:
        return "a small file system needs root to be mounted"
    probe = Path("/tmp") / f"prefdag-mount-{os.getpid()}"
    probe.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", probe], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", probe], check=True)
    probe.rmdir()
    return None if done.returncode == 0 else "this container may not mount a file system"


def no_memory_group() -> str | None:
    """None where memory cgroups (version 1) can be made, else why not."""
    place = Path("/sys/fs/cgroup/memory")
    if os.access(place, os.W_OK) and (place / "memory.limit_in_bytes").exists():
        return None
    return f"no memory cgroup can be made in {place}"
