"""Print the policy that every on-policy method reaches in the enumerable worlds of a file, and theory's.

Each method's expected updates are followed in float64 from the reference. The output is one JSON object with a world's
`converges_to` (probabilities by method), `max_abs_dev_from_theory`, `kl_to_optimum` and `no_interior_optimum`.
"""

import argparse
import json
from pathlib import Path

from prefdag.theory.stated_worlds import read_worlds, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSON of worlds, such as tests/golden/enumerable_worlds.json")


def run(arguments: argparse.Namespace) -> int:
    results = {name: summary(stated) for name, stated in read_worlds(arguments.file).items()}
    print(json.dumps(results, indent=1))
    return 0
