"""`prefdag loss --cases FILE.json`: every loss on given numbers, against which other tools can be compared."""

import argparse
import json
from pathlib import Path

from prefdag.cases import evaluate, read_cases
from prefdag.errors import UserError


def main(argv: list[str]) -> int:
    """Print the loss and its gradients of every case of a file, one JSON line a case, in float64."""
    parser = argparse.ArgumentParser(prog="prefdag loss", description=main.__doc__)
    parser.add_argument("--cases", type=Path, required=True, help="JSON with `fixtures` and `cases`")
    path = parser.parse_args(argv).cases
    given = read_cases(path)
    try:
        for case in given.cases:
            print(json.dumps(evaluate(case, given.fixtures)))
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from None
    return 0
