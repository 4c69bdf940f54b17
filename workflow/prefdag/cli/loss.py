"""`prefdag loss --cases FILE.json`: every loss on given numbers, against which other tools can be compared."""

import argparse
import json
from pathlib import Path

from prefdag.errors import UserError
from prefdag.testing.cases import evaluate, read_cases


def main(argv: list[str]) -> int:
    """Print the loss and its gradients of every case of a file, one JSON line a case, in float64.

    A case that cannot be evaluated does not keep the others from it; it is told at the end.
    """
    parser = argparse.ArgumentParser(prog="prefdag loss", description=main.__doc__)
    parser.add_argument("--cases", type=Path, required=True, help="JSON with `fixtures` and `cases`")
    path = parser.parse_args(argv).cases
    given, mistakes = read_cases(path), list[str]()
    for case in given.cases:
        try:
            print(json.dumps(evaluate(case, given.fixtures)))
        except UserError as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        others = f" (and {len(mistakes) - 1} more of {len(given.cases)} cases)" if len(mistakes) > 1 else ""
        raise UserError(f"{path}: {mistakes[0]}{others}")
    return 0
