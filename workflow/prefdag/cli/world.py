"""Print the policy that every on-policy method reaches in the enumerable worlds of a file, and theory's.

Each method's expected updates are followed in float64 from the reference. The output is one JSON object with a world's
`converges_to` (probabilities by method), `max_abs_dev_from_theory`, `kl_to_optimum` and `no_interior_optimum`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from prefdag.theory.stated_worlds import read_worlds, summary

EQUAL = 1e-9  # nats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSON of worlds, such as tests/golden/enumerable_worlds.json")
    parser.add_argument("--table", action="store_true", help="print KL(pi || pi*) of every method as Markdown")


def run(arguments: argparse.Namespace) -> int:
    results = {name: summary(stated) for name, stated in read_worlds(arguments.file).items()}
    print("\n".join(table(results)) if arguments.table else json.dumps(results, indent=1))
    return 0


def table(results: dict[str, Any]) -> list[str]:
    """Return the lines of a Markdown table: a line per method, a column per world with KL(pi || pi*) in nats."""
    first = next(iter(results.values()))
    lines = [
        "| " + " | ".join(["method", "where it goes", *(f"KL to pi\\*, {name}" for name in results)]) + " |",
        "|---|---|" + "---:|" * len(results),
    ]
    for method, sentence in first["optimum_in_words"].items():
        if method == "optimum":
            continue
        cells = [f"`{method}`", sentence.replace("|", "\\|").replace("*", "\\*")]
        lines.append("| " + " | ".join([*cells, *(_distance(result, method) for result in results.values())]) + " |")
    return lines


def _distance(result: dict[str, Any], method: str) -> str:
    if method not in result["kl_to_optimum"]:
        return ""
    if method in result["no_interior_optimum"]:
        return "runs away"
    kl = result["kl_to_optimum"][method]
    return "0" if abs(kl) < EQUAL else f"{kl:.2g}"
