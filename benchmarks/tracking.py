"""Compare the writer over journals with stages that log to MLflow directly, one call per step.

PYTHONPATH=workflow python -m benchmarks.tracking --runs 200 --points 50 --rounds 3

Every arm is a separate process with an empty SQLite database; arms take turns. CPU seconds (other work on the machine
hardly touches them), wall seconds, and the process's peak memory.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METRICS = ("loss", "accuracy", "margin", "grad_norm")


def stage(root: Path, runs: int, points: int) -> None:
    """What stages do here: write journals, without MLflow."""
    from prefdag.provenance.journal import open_journal

    for run in range(runs):
        journal = open_journal(root, "preference", f"run{run}")
        journal.start(config={"preference": {"beta": 0.1, "seed": run}}, inputs={}, code="c0de")
        for step in range(points):
            journal.metrics(step, dict.fromkeys(METRICS, step / points))
        journal.end(status="finished", seconds=1.0, peak_memory_mb=1.0)


def writer(root: Path, runs: int, points: int) -> None:
    from prefdag.tracking.sync import Writer

    assert Writer(root).replay() == runs


def direct(root: Path, runs: int, points: int) -> None:
    """What stages would do without journals: one request a step."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root.parent}/mlflow.db")
    experiment = client.create_experiment(root.name)
    for run in range(runs):
        made = client.create_run(experiment, run_name=f"preference/run{run}").info.run_id
        client.log_batch(made, params=[Param("preference.beta", "0.1"), Param("preference.seed", str(run))])
        for step in range(points):
            now = int(time.time() * 1000)
            client.log_batch(made, metrics=[Metric(name, step / points, now, step) for name in METRICS])
        client.set_terminated(made)


ARMS = {"journals (the stages' part)": stage, "writer, all journals at once": writer, "direct logging": direct}


def one(arm: str, root: Path, runs: int, points: int) -> None:
    began = time.perf_counter()
    ARMS[arm](root, runs, points)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.perf_counter() - began}
    print(json.dumps({**spent, "memory": usage.ru_maxrss / 1024}))


def measured(arm: str, folder: Path, template: Path, options: argparse.Namespace) -> dict[str, float]:
    """One arm in its own process, on a copy of an empty database."""
    root = folder / "results" / "suite"
    (root.parent / "mlflow.db").unlink(missing_ok=True)
    if arm == "journals (the stages' part)":
        shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    if template.is_file():
        shutil.copy(template, root.parent / "mlflow.db")
    command = [sys.executable, __file__, "--arm", arm, "--root", str(root)]
    command += ["--runs", str(options.runs), "--points", str(options.points)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI")
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=int, default=50, help="steps of each run; each has four metrics")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    if options.arm:
        one(options.arm, options.root, options.runs, options.points)
        return
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        folder, template = Path(name), Path(name, "empty.db")
        empty = f"from mlflow.tracking import MlflowClient; MlflowClient('sqlite:///{template}').search_experiments()"
        subprocess.run([sys.executable, "-c", empty], check=True)
        for _ in range(options.rounds):
            for arm in ARMS:
                results[arm].append(measured(arm, folder, template, options))
    print("| runs x steps | | CPU, s | wall, s | peak memory, MB |\n|---|---|---|---|---|")
    for arm, rounds in results.items():
        cells = (_cell([one[key] for one in rounds]) for key in ("cpu", "wall", "memory"))
        print(f"| {options.runs} x {options.points:,} | {arm} | {' | '.join(cells)} |")


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
