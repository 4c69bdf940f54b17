"""Inject faults of machines, disks and people into every stage, and tabulate the outcomes.

    python tests/faults/faults.py --times 3     # every fault at every stage, and the table docs/faults.md

A trial disturbs one stage in a copy of a small finished project. It passes if the stage then produces the manifest of
an undisturbed run, byte for byte, or ends with one message that names the file and what to do, and produces that
manifest after the fix. A traceback, another number, a half-written file or a manifest without its files is a failure.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: conftest finds the rest

import slurm_faults
from fault_bench import (
    BY_FOLDER,
    STEPS,
    TRAININGS,
    UNDER_TEST,
    Bench,
    Command,
    Job,
    R,
    address_space,
    bench,
    can_mount,
    limit,
    no_memory_group,
    send,
    steps_taken,
    wait_for_start,
    whole,
)  # fmt: skip

from conftest import ROOT
from prefdag.provenance.manifest import read_manifest
from slurm_cluster import missing

Cell = tuple[Callable[..., str], str, int]  # fault, stage, number of the trial
Counts = dict[tuple[str, str], Counter[str]]
SAME, REMEDIED, LATE = "same after a rerun", "an error message; same after the fix", "not hit"


@dataclass
class Trial:
    """One fault at one stage, in a separate folder."""

    on: Bench
    stage: str
    folder: Path
    draw: random.Random

    @property
    def command(self) -> Command:
        return BY_FOLDER[UNDER_TEST[self.stage]]

    @property
    def output(self) -> Path:
        return self.folder / R / self.command.folder

    def start(self, **how: object) -> Job:
        return self.on.start(self.folder, self.command.arguments(), **how)  # type: ignore[arg-type]

    def half_way(self) -> Job:
        """The stage's process at a random step of a training, or a random moment of any other."""
        shutil.rmtree(self.folder / R / ".journal", ignore_errors=True)
        job = self.start()
        at = self.draw.randrange(1, STEPS - 5)
        wait_for_start(self.folder, self.stage, job)
        if self.stage in TRAININGS:
            while job.process.poll() is None and steps_taken(self.folder, self.stage) < at:
                time.sleep(0.002)
        else:
            time.sleep(self.draw.uniform(0, 0.2))
        return job

    def sentence(self, code: int, printed: str, *named: str) -> str:
        """Return the one error message of a job that ended with exit code 2 and left nothing half-written."""
        messages = [line for line in printed.splitlines() if line.startswith("prefdag: ")]
        assert code == 2 and len(messages) == 1 and "Traceback" not in printed, f"exit code {code}\n{printed}"
        assert all(name in messages[0] for name in named) and ";" in messages[0], f"{named} in {messages[0]}"
        assert not (self.output / "manifest.json").exists() and not self.unfinished()
        return messages[0]

    def unfinished(self) -> list[Path]:
        return list((self.folder / R / ".partial").glob(f"{self.stage}-*"))

    def finish(self, outcome: str) -> str:
        """Run the stage to its end, undisturbed."""
        code, printed = self.start().end()
        assert code == 0, f"exit code {code}\n{printed}"
        return self.same(outcome)

    def same(self, outcome: str) -> str:
        assert (self.output / "manifest.json").read_bytes() == self.on.expected(self.command.folder), "another manifest"
        assert whole(self.output / "manifest.json") and not self.unfinished()
        assert not list((self.folder / R / ".resume").glob(f"{self.stage}-*"))
        return outcome

    def ended(self, code: int, printed: str, *codes: int) -> str:
        """Check a process that was ended: it has no manifest unless it had finished, and a rerun makes the same one."""
        assert code in (0, *codes) and "Traceback" not in printed, f"exit code {code}\n{printed}"
        if code == 0 or (self.output / "manifest.json").exists():
            return self.same(LATE)
        return self.finish(SAME)


def killed(trial: Trial) -> str:
    """SIGKILL at a random step."""
    job = trial.half_way()
    send(job, signal.SIGKILL)
    return trial.ended(*job.end(), -signal.SIGKILL)


def told_to_stop(trial: Trial) -> str:
    """SIGTERM at a random step."""
    job = trial.half_way()
    send(job, signal.SIGTERM)
    code, printed = job.end()
    assert code == 0 or "stopped by SIGTERM; the next run continues" in printed, printed
    return trial.ended(code, printed, 143)


def stopped_and_killed(trial: Trial) -> str:
    """SIGTERM, then SIGKILL, twice in a row."""
    for _ in range(2):
        job = trial.half_way()
        send(job, signal.SIGTERM)
        time.sleep(trial.draw.uniform(0, 0.05))
        send(job, signal.SIGKILL)
        code, printed = job.end()
        if code == 0:
            return trial.same(LATE)
    return trial.ended(code, printed, -signal.SIGKILL, -signal.SIGTERM, 143)


def twice(trial: Trial) -> str:
    """The same job started twice at once; the second waits."""
    jobs = [trial.start(), trial.start()]
    ends = [job.end() for job in jobs]
    assert [code for code, _ in ends] == [0, 0], ends
    return trial.same("both finish with the same output")


def little_memory(trial: Trial) -> str:
    """ulimit -v slightly above what the process uses."""
    job = trial.start()
    if process := wait_for_start(trial.folder, trial.stage, job):
        limit(process, resource.RLIMIT_AS, address_space(process) + trial.draw.randrange(1 << 20))
    code, printed = job.end()
    if code == 134:  # a library's own abort: the process that waits for the job says it
        assert "was ended by SIGABRT, perhaps for its memory; rerun" in printed, printed
        return trial.ended(code, printed, 134)
    if code == 0:
        return trial.same(LATE)
    trial.sentence(code, printed, "out of memory", "give the job more")
    return trial.finish(REMEDIED)


def killed_for_memory(trial: Trial) -> str:
    """A memory cgroup that is too small: the kernel kills the process."""
    group = Path(f"/sys/fs/cgroup/memory/prefdag-{os.getpid()}-{trial.draw.randrange(1 << 30)}")
    group.mkdir()
    job = trial.start()
    try:
        (group / "memory.limit_in_bytes").write_text(str(4096 * trial.draw.randrange(100, 1000)))
        if process := wait_for_start(trial.folder, trial.stage, job):
            (group / "cgroup.procs").write_text(str(process))
        code, printed = job.end()
    finally:
        job.process.kill()
        time.sleep(0.1)
        group.rmdir()
    assert code == 0 or "was ended by SIGKILL, perhaps for its memory" in printed, printed
    return trial.ended(code, printed, 137)


def full_disk(trial: Trial) -> str:
    """A disk (tmpfs) with room for only part of the output."""
    with _mounted(trial) as place:
        written = sum(one["size"] for one in read_manifest(_finished(trial)).content["files"].values())
        free = trial.draw.randrange(4096, max(8192, int(0.9 * written)))
        _remount(place, f"size={_used(place) + free}")
        code, printed = trial.start().end()
        if code == 0:
            return trial.same(LATE)
        trial.sentence(code, printed, R, "no space left", "free some")
        _remount(place, "size=200m")
        return trial.finish(REMEDIED)


def limited_files(trial: Trial) -> str:
    """ulimit -f, less than the stage's largest file."""
    job = trial.start()
    largest = max(one["size"] for one in read_manifest(_finished(trial)).content["files"].values())
    if process := wait_for_start(trial.folder, trial.stage, job):
        limit(process, resource.RLIMIT_FSIZE, trial.draw.randrange(1024, largest))
    code, printed = job.end()
    if code == 0:
        return trial.same(LATE)
    trial.sentence(code, printed, R, "no space left", "raise the limit")
    return trial.finish(REMEDIED)


def read_only(trial: Trial) -> str:
    """A read-only output folder."""
    with _mounted(trial) as place:
        _remount(place, "ro")
        trial.sentence(*trial.start().end(), R, "writable")
        _remount(place, "rw")
        return trial.finish(REMEDIED)


def cut_state(trial: Trial) -> str:
    """A truncated saved state."""
    return _damaged_state(trial, lambda data: data[: trial.draw.randrange(len(data))])


def flipped_state(trial: Trial) -> str:
    """One flipped bit in a saved state."""
    return _damaged_state(trial, lambda data: _flipped(data, trial.draw))


def _damaged_state(trial: Trial, damage: Callable[[bytes], bytes]) -> str:
    job = trial.half_way()
    send(job, signal.SIGTERM)
    code, printed = job.end()
    if code == 0:
        return trial.same(LATE)
    (state,) = (trial.folder / R / ".resume").glob(f"{trial.stage}-*/**/state.pt")
    state.write_bytes(damage(state.read_bytes()))
    code, printed = trial.start().end()
    if code == 0:
        return trial.same("read without a difference")  # a bit of padding, which says nothing
    message = trial.sentence(code, printed, "state.pt", "delete")
    shutil.rmtree(trial.folder / _named(message, r"delete (\S+) and rerun"))
    return trial.finish(REMEDIED)


def flipped_input(trial: Trial) -> str:
    """One flipped bit in an input file."""
    file = _input_file(trial)
    file.write_bytes(_flipped(file.read_bytes(), trial.draw))
    return _remedied(trial, str(file.relative_to(trial.folder)))


def flipped_weights(trial: Trial) -> str:
    """One flipped bit in the input weights."""
    file = _input_file(trial, weights=True)
    file.write_bytes(_flipped(file.read_bytes(), trial.draw))
    return _remedied(trial, str(file.relative_to(trial.folder)))


def other_weights(trial: Trial) -> str:
    """Weights of another training under the wrong manifest."""
    file = _input_file(trial, weights=True)
    others = [one for one in trial.folder.glob(f"{R}/**/model.safetensors") if one.read_bytes() != file.read_bytes()]
    shutil.copy(trial.draw.choice(sorted(others)), file)
    return _remedied(trial, str(file.relative_to(trial.folder)))


def flipped_manifest(trial: Trial) -> str:
    """One flipped bit in an input manifest."""
    file = trial.folder / R / trial.draw.choice(list(trial.command.inputs.values())) / "manifest.json"
    file.write_bytes(_flipped(file.read_bytes(), trial.draw))
    return _remedied(trial, str(file.relative_to(trial.folder)))


def deleted_input(trial: Trial) -> str:
    """An input file is missing."""
    file = _input_file(trial)
    file.unlink()
    return _remedied(trial, str(file.relative_to(trial.folder)))


def deleted_manifest(trial: Trial) -> str:
    """The manifest of an input is missing."""
    of = trial.draw.choice(list(trial.command.inputs.values()))
    (trial.folder / R / of / "manifest.json").unlink()
    trial.sentence(*trial.start().end(), f"{R}/{of}/manifest.json", "run the stage")
    return _made_anew(trial, of)


def not_finite(trial: Trial) -> str:
    """A learning rate of 1e30: the loss, or its gradient, is infinite or not a number."""
    ((section, settings),) = [one for one in trial.command.config.items() if one[0] == trial.stage]
    config = {**trial.command.config, section: {**settings, "learning_rate": 1e30}}
    arguments = Command(trial.command.folder, config, trial.command.inputs).arguments()
    code, printed = trial.on.start(trial.folder, arguments).end()
    message = trial.sentence(code, printed, "learning_rate", "source rows")
    assert re.search(r"step \d+: the .* is (nan|inf|-inf); the step's comparisons are \d+", message), message
    assert re.search(r"; (the last good state is step \d+'s, \S+state\.pt|no state was saved yet); ", message), message
    return trial.finish("an error message with step, comparisons and last good state")


EVERYWHERE = [
    killed, told_to_stop, stopped_and_killed, twice, little_memory, killed_for_memory, full_disk, limited_files,
    read_only, flipped_input, flipped_manifest, deleted_input, deleted_manifest,
]  # fmt: skip
FAULTS: dict[Callable[[Trial], str], tuple[str, ...]] = {
    **{fault: tuple(UNDER_TEST) for fault in EVERYWHERE},
    **dict.fromkeys((flipped_weights, other_weights), ("sft", "reward", "preference", "generate")),
    **dict.fromkeys((cut_state, flipped_state, not_finite), TRAININGS),
}
NEED_MOUNTS = {full_disk, read_only}


def attempt(on: Bench, fault: Callable[[Trial], str], stage: str, seed: int, folder: Path) -> str:
    """One trial; the outcome. Raises AssertionError where a promise is broken."""
    trial = Trial(on, stage, folder, random.Random(f"{fault.__name__} {stage} {seed}"))
    folder.mkdir()
    on.copy(folder, trial.command.folder)
    return fault(trial)


def _flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _input_file(trial: Trial, weights: bool = False) -> Path:
    """A file of one of the stage's inputs: weights that it loads, or any other."""
    loads = ("policy", "base")
    candidates = []
    for option, of in trial.command.inputs.items():
        files = read_manifest(trial.folder / R / of / "manifest.json").content["files"]
        for name, about in files.items():
            if about["size"] and name.endswith(".safetensors") == weights and (not weights or option in loads):
                candidates.append(trial.folder / R / of / name)
    return trial.draw.choice(sorted(candidates))


def _remedied(trial: Trial, named: str) -> str:
    """The stage names the file; once the manifest that it names is deleted and its stage rerun, it succeeds."""
    message = trial.sentence(*trial.start().end(), named, "delete", "rerun")
    manifest = _named(message, r"delete (\S+manifest\.json|it) and rerun")
    of = str(Path(named if manifest == "it" else manifest).parent.relative_to(R))
    (trial.folder / R / of / "manifest.json").unlink()
    return _made_anew(trial, of)


def _made_anew(trial: Trial, of: str) -> str:
    code, printed = trial.on.start(trial.folder, BY_FOLDER[of].arguments()).end()
    assert code == 0, printed
    assert (trial.folder / R / of / "manifest.json").read_bytes() == trial.on.expected(of)
    return trial.finish(REMEDIED)


def _named(message: str, pattern: str) -> str:
    match = re.search(pattern, message)
    assert match, message
    return match[1]


def _finished(trial: Trial) -> Path:
    return trial.on.base / R / trial.command.folder / "manifest.json"


@contextmanager
def _mounted(trial: Trial) -> Iterator[Path]:
    """The trial's results on a small file system of their own."""
    place = trial.folder / "results"
    shutil.move(place, trial.folder / "before")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", place], check=True)
    try:
        shutil.copytree(trial.folder / "before", place, dirs_exist_ok=True)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


def _used(place: Path) -> int:
    return shutil.disk_usage(place).used


def main() -> None:
    """Run every fault at every stage `--times` times and write the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--slurm-times", type=int, default=1, help="the same for what only a cluster does")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial: another draws other moments")
    parser.add_argument("--only", nargs="*", help="names of faults")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/faults.md")
    options = parser.parse_args()
    refusals = {**dict.fromkeys(NEED_MOUNTS, can_mount()), killed_for_memory: no_memory_group()}
    refusals |= dict.fromkeys(slurm_faults.FAULTS, missing())
    for reason in filter(None, dict.fromkeys(refusals.values())):
        print(f"not all faults are tried: {reason}", flush=True)

    def cells(faults: dict[Callable[..., str], tuple[str, ...]], times: int) -> list[Cell]:
        chosen = [one for one in faults if not refusals.get(one) and (not options.only or one.__name__ in options.only)]
        numbers = range(options.first, options.first + times)
        return [(fault, stage, n) for fault in chosen for stage in faults[fault] for n in numbers]

    counts: Counts = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        place = Path(name)
        if local := cells(FAULTS, options.times):
            with bench(place) as on:
                tally(local, partial(attempt, on), place, counts)
        if on_cluster := cells(dict.fromkeys(slurm_faults.FAULTS, tuple(UNDER_TEST)), options.slurm_times):
            with slurm_faults.bench(place) as cluster:
                tally(on_cluster, cluster.attempt, place, counts)
    options.table.write_text(table(counts))


def tally(cells: list[Cell], attempt: Callable[..., str], place: Path, counts: Counts) -> None:
    """Try every cell, two at a time, and count outcomes."""

    def tried(cell: Cell) -> str:
        fault, stage, n = cell
        folder = place / f"{fault.__name__}-{stage}-{n}"
        try:
            return attempt(fault, stage, n, folder)
        except Exception as error:
            print(f"FAILED {fault.__name__} {stage} {n}: {error}", flush=True)
            return "FAILED"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    with ThreadPoolExecutor(2) as two:
        for (fault, stage, n), outcome in zip(cells, two.map(tried, cells), strict=True):
            print(f"{fault.__name__:18} {stage:10} {n} {outcome}", flush=True)
            counts.setdefault((fault.__doc__ or "", stage), Counter())[outcome] += 1


def table(counts: Counts) -> str:
    """Return the page with the number of trials and their outcomes."""
    rows = [
        f"| {about.rstrip('.')} | {stage} | {sum(outcomes.values())} | "
        + "; ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
        + " |"
        for (about, stage), outcomes in counts.items()
    ]
    return PAGE.read_text().partition(BEGIN)[0] + "\n".join([BEGIN, "|---|---|---|---|", *rows]) + "\n"


PAGE = ROOT / "docs/faults.md"
BEGIN = "| fault | stage | tried | outcome |"


if __name__ == "__main__":
    main()
