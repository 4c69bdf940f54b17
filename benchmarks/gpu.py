"""The benchmark on one GPU without Snakemake, MLflow or a network.

PYTHONPATH=workflow python -m benchmarks.gpu OUT

Meant for nine minutes of an H100, on a machine that has torch, transformers, accelerate, pandas, matplotlib, PyYAML and
rich. What is missing of trl, datasets, dill, multiprocess, pydantic, pydantic-core, annotated-types and
typing-inspection may come as wheels (`pip install --no-index --no-deps --target FOLDER *.whl`, with FOLDER on
PYTHONPATH), liger-kernel too; without it Liger's arm is left out. Parts that OUT holds already are not measured again.
Writes a folder for each part, with runs.csv, losses.csv, ratios.csv, benchmarks.md and a figure, and half.csv: errors
of bf16 against float64.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
import yaml

from benchmarks.config import Benchmark
from benchmarks.half import errors_in_half
from benchmarks.measure import measure_cells, write_results
from benchmarks.micro import store_of
from benchmarks.shapes import vocabulary, write_ids, write_model
from prefdag.errors import UserError
from prefdag.models.loading import load_policy, set_up

LIGER = importlib.util.find_spec("liger_kernel") is not None
SPEED = yaml.safe_load((Path(__file__).parent / "settings/gpu.yaml").read_text())
SHORT = {**SPEED, "steps": 4, "rounds": 1}
PARTS = {
    "speed": {**SPEED, "liger": LIGER},
    "memory": {**SHORT, "profiles": ["1024"], "per_device": [8], "tokens_per_batch": 4096, "pairs_per_step": 8},
    "large": {**SHORT, "shapes": ["pythia-2.8b"], "trl": False, "pairs_per_step": 32},
}
HALF = ("small", "pythia-14m", "qwen2-style")  # shapes whose errors in half precision are measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=("half", *PARTS), default=["half", *PARTS])
    parser.add_argument("--shape", help="another shape than the parts' own, to try them where there is no GPU")
    arguments = parser.parse_args()
    try:
        for name in arguments.parts:
            folder = arguments.out / name
            if (folder / "benchmarks.md").exists() or (arguments.out / f"{name}.csv").exists():
                continue
            if name == "half":
                arguments.out.mkdir(parents=True, exist_ok=True)
                half((arguments.shape,) if arguments.shape else HALF).to_csv(arguments.out / "half.csv", index=False)
                continue
            overrides = {"shapes": [arguments.shape]} if arguments.shape else {}
            settings = Benchmark.model_validate({**PARTS[name], **overrides})
            with tempfile.TemporaryDirectory() as cells:
                runs = measure_cells(settings, Path(cells))
            folder.mkdir(parents=True, exist_ok=True)
            write_results(runs, settings, folder)
            print((folder / "benchmarks.md").read_text(), flush=True)
    except UserError as mistake:
        print(f"gpu.py: {mistake}", file=sys.stderr)
        return 2
    return 0


def half(shapes: tuple[str, ...], num: int = 16) -> pd.DataFrame:
    """Errors in half precision of each shape on `num` pairs of HH's lengths."""
    device, rows = set_up(threads=8), []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = load_policy(write_model(shape, folder / "model"), device)
            store = store_of(write_ids("hh", vocabulary(shape), num, folder / "ids.jsonl"), folder, num, 2)
            rows.append({"shape": shape, **errors_in_half(model, [store[index] for index in range(num)])})
        print(f"half: {rows[-1]}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return pd.DataFrame(rows)


if __name__ == "__main__":
    sys.exit(main())
