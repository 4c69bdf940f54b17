"""Time and memory of `prepare` on made-up pairs with HH lengths: python -m benchmarks.prepare TOKENIZER 8000 40000

Each size runs in a separate process. Memory is the proportional set size of the job and its workers together, read
four times a second; a shared page counts once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.shapes import PROFILES
from prefdag.provenance.manifest import describe
from prefdag.reporting.figures.style import BLUE, VERMILLION, new_figure, use_style
from prefdag.seeds import generator

SECTION = {
    "adapter": "pairs",
    "template": "plain",
    "bos": False,
    "end_of_turn": "eos",
    "over_long": "drop",
    "max_prompt_tokens": 10000,
    "max_response_tokens": 10000,
    "validation_fraction": 0.01,
    "leakage": "allow",
}
Point = tuple[int, float, float]  # pairs, seconds, megabytes


def write_rows(path: Path, num: int) -> None:
    """Pairs of made-up words; a prompt, a chosen and a rejected response as long as one of HH's, in words."""
    draw = generator(0, "benchmark", "words")
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(draw.choice(letters, size)) for size in draw.integers(2, 9, 20000)])
    with path.open("w") as stream:
        for lengths in PROFILES["hh"](num).tolist():
            texts = [" ".join(draw.choice(words, size)) for size in lengths]
            stream.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))) + "\n")


def measured(tokenizer: Path, num: int, folder: Path) -> Point:
    """Prepare `num` pairs."""
    rows, vocabulary = folder / f"{num}/fetch/data", folder / f"{num}/fetch/tokenizer"
    rows.mkdir(parents=True)
    vocabulary.mkdir()
    (vocabulary / "tokenizer").symlink_to(tokenizer.resolve())
    write_rows(rows / "train.jsonl", num)
    for at in (rows, vocabulary):
        (at / "manifest.json").write_bytes(describe(at, "fetch", {}, {}, {}, None))
    config = json.dumps({"prepare": SECTION, "dataset": "comparisons"})
    command = [sys.executable, "-m", "prefdag", "prepare", "--config", config, "--rows", f"{rows}/manifest.json"]
    command += ["--tokenizer", f"{vocabulary}/manifest.json"]
    command += ["--output", f"{folder}/{num}/prepare/comparisons/manifest.json"]
    began, most = time.monotonic(), 0.0
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while job.poll() is None:
        most = max(most, sum(map(_megabytes, _tree(job.pid))))
        time.sleep(0.25)
    assert job.returncode == 0, "prepare failed"
    return num, time.monotonic() - began, most


def _tree(process: int) -> list[int]:
    """A process and everything that it started."""
    processes = [process]
    for parent in processes:
        try:
            started = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        processes += map(int, started)
    return processes


def _megabytes(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def draw(points: list[Point], path: Path) -> None:
    """Time and memory against the number of pairs."""
    pairs, seconds, memory = zip(*points, strict=True)
    with use_style():
        figure = new_figure(6.4, 2.6)
        for place, (values, title, colour) in enumerate(
            ((seconds, "Time (s)", BLUE), (memory, "Memory of all processes (MB)", VERMILLION)), 1
        ):
            axes = figure.add_subplot(1, 2, place, title=title, xlabel="thousand pairs")
            axes.plot([num / 1000 for num in pairs], values, "o-", color=colour)
            axes.set_ylim(0, 1.15 * max(values))
        figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path, help="a folder that transformers loads a tokenizer from")
    parser.add_argument("pairs", type=int, nargs="+")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/prepare.png"))
    arguments = parser.parse_args()
    points = []
    with tempfile.TemporaryDirectory() as folder:
        for num in arguments.pairs:
            points.append(measured(arguments.tokenizer, num, Path(folder)))
            print("{} pairs: {:.1f} s, {:.0f} MB".format(*points[-1]), flush=True)
    draw(points, arguments.figure)


if __name__ == "__main__":
    main()
