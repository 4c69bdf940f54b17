"""A sweep's trainings as separate processes, as forks of one with torch imported, and of one with their policy loaded.

PYTHONPATH=workflow python workflow/bench/sweep.py results/quickstart dpo-beta0.1-seed0 --runs 24 --rounds 2

The named run of a finished suite is made again at `--runs` values of beta, two at a time; arms take turns. Wall seconds
of all runs together, and of one run beyond its steps. Manifests of all arms must be equal, byte for byte.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ARMS = ("separate", "imports shared", "policy shared")


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """What a job's environment says of a warm server in `folder`."""
    path = folder / "warm"
    process = subprocess.Popen([sys.executable, "-m", "prefdag.runtime.warm_start", str(path), str(os.getpid())])
    while not path.exists():
        time.sleep(0.01)
    try:
        yield {"PREFDAG_WARM": str(path)}
    finally:
        process.terminate()
        process.wait()


def commands(suite: Path, name: str, runs: int, root: Path) -> list[list[str]]:
    """A command for each beta, from the finished run's own config."""
    config = json.loads((suite / "preference" / name / "manifest.json").read_text())["config"]
    inputs = {"policy": "sft", "comparisons": "prepare/comparisons", "reference": "reference/comparisons"}
    read = [f"--{option}={suite / folder / 'manifest.json'}" for option, folder in inputs.items()]
    found = []
    for number in range(runs):
        changed = {**config, "objective": {**config["objective"], "beta": 0.05 * (number + 1)}}
        output = f"--output={root}/preference/run{number}/manifest.json"
        found.append([sys.executable, "-m", "prefdag", "preference", f"--config={json.dumps(changed)}", *read, output])
    return found


def made(arm: str, suite: Path, name: str, runs: int) -> tuple[float, float, list[bytes]]:
    """Wall seconds of the arm, seconds of one run beyond what its journal counts, and every run's manifest."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "suite")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PREFDAG_TOGETHER": str(int(arm == "policy shared"))}

        def run(command: list[str], more: dict[str, str]) -> float:
            began = time.perf_counter()
            subprocess.run(command, env=environment | more, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        began = time.perf_counter()
        with ThreadPoolExecutor(2) as two:
            if arm == "separate":
                spent = list(two.map(lambda command: run(command, {}), commands(suite, name, runs, root)))
            else:
                with server(Path(place)) as more:
                    spent = list(two.map(lambda command: run(command, more), commands(suite, name, runs, root)))
        wall = time.perf_counter() - began
        ends = [json.loads(path.read_text().splitlines()[-1]) for path in (root / ".journal").glob("*.jsonl")]
        beyond = (sum(spent) - sum(end["seconds"] for end in ends)) / runs
        return wall, beyond, [(root / f"preference/run{n}/manifest.json").read_bytes() for n in range(runs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path)
    parser.add_argument("run")
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in options.arms}
    manifests: list[list[bytes]] = []
    for _ in range(options.rounds):
        for arm in options.arms:
            wall, beyond, equal = made(arm, options.suite.resolve(), options.run, options.runs)
            found[arm].append((wall, beyond))
            manifests.append(equal)
            print(f"{arm}: {wall:.1f} s, {beyond:.2f} s a run beyond its stage", file=sys.stderr, flush=True)
    assert all(one == manifests[0] for one in manifests), "arms differ"
    print("| runs | | all of them, s | a run beyond its stage, s |\n|---|---|---|---|")
    for arm, rounds in found.items():
        cells = " | ".join(_cell([one[part] for one in rounds], digits) for part, digits in ((0, 1), (1, 2)))
        print(f"| {options.runs} | {arm} | {cells} |")


def _cell(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
