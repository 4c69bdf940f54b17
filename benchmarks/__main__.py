"""Measure prefdag against TRL and against plainer forms of the same step: `python -m benchmarks [SETTINGS.yaml]`."""

import argparse
import sys
from pathlib import Path

import yaml

from benchmarks.config import Benchmark
from benchmarks.measure import measure_cells, write_results
from prefdag.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Measure every cell of the settings and write tables and a figure; return the exit code.

    A full run takes hours. Measured cells are stored in the output folder, and a later run continues after them.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("settings", nargs="?", type=Path, help="YAML of `benchmarks.config`; default: one short cell")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="default: results/benchmarks")
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings(arguments.settings) if arguments.settings else Benchmark()
        runs = measure_cells(settings, arguments.output)
        ratios = write_results(runs, settings, arguments.output)
    except UserError as mistake:
        print(f"benchmarks: {mistake}", file=sys.stderr)
        return 2
    for (task, arm), cells in ratios.groupby(["task", "arm"]):
        mean = cells["speedup"].product() ** (1 / len(cells))
        print(f"{task}: {mean:.2f} times {arm} (geometric mean of {len(cells)} cells)")
    print(f"table: {arguments.output / 'benchmarks.md'}")
    return 0


def read_settings(path: Path) -> Benchmark:
    """Read settings from YAML. Raises `UserError` where the file is missing, broken or has an unknown key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a YAML file of benchmark settings") from None
    return Benchmark.parse(values, str(path))


if __name__ == "__main__":
    sys.exit(main())
