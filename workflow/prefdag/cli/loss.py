"""Evaluate losses on the numbers of a file, to compare them with another tool's.

Prints the loss and its gradients of every case, one JSON line a case, in float64.
"""

import argparse
import json
from pathlib import Path

from prefdag.errors import UserError
from prefdag.testing.cases import evaluate, read_cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=Path, required=True, help="JSON with `fixtures` and `cases`")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every case, and report those that cannot be evaluated at the end."""
    path = arguments.cases
    read, mistakes = read_cases(path), list[str]()
    for case in read.cases:
        try:
            print(json.dumps(evaluate(case, read.fixtures)))
        except UserError as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        others = f" (and {len(mistakes) - 1} more of {len(read.cases)} cases)" if len(mistakes) > 1 else ""
        raise UserError(f"{path}: {mistakes[0]}{others}")
    return 0
