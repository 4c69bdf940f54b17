"""`prefdag winrate FILE [MORE ...]`: win rates of verdicts, with error, length and order; who agrees with whom."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from prefdag.evaluation.verdicts import read_verdicts
from prefdag.evaluation.win_rates import agreement, described

RATES = ("win_rate", "low", "high", "standard_error", "prefers_first", "agreement", "agreement_low", "agreement_high")


def main(argv: list[str]) -> int:
    """Print JSON; rates in percent, as leaderboards have them. Several judges or files also get their agreement."""
    parser = argparse.ArgumentParser(prog="prefdag winrate", description=main.__doc__)
    parser.add_argument("file", nargs="+", type=Path, help="AlpacaEval annotations, a judged csv, or verdicts.csv")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples of the prompts behind each interval")
    given = parser.parse_args(argv)
    judges = [(path, judged) for path in given.file for judged in read_verdicts(path)]
    about = {"seed": "winrate", "bootstrap": given.bootstrap}
    rates = [
        {"file": str(path), "judge": judged.judge, "unit": "percent", **described(judged, **about)}
        for path, judged in judges
    ]
    pairs = itertools.combinations([judged for _, judged in judges], 2)
    agreements = [found for one, other in pairs if (found := agreement(one, other, **about))["n"]]
    found = rates[0] if len(rates) == 1 else {"judges": rates, "agreement": agreements}
    print(json.dumps(percent(found), indent=1))
    return 0


def percent(value: Any, key: str = "") -> Any:
    """Every rate in `value`, at any depth, times 100."""
    if isinstance(value, dict):
        return {name: percent(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [percent(inner) for inner in value]
    return 100 * value if isinstance(value, float) and key in RATES else value
