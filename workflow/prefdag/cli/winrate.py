"""Print win rates of files of verdicts, with error, length, order and agreement of judges."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from prefdag.cli.commands import options
from prefdag.evaluation.over_seeds import ONE_SEED
from prefdag.evaluation.verdicts import read_verdicts
from prefdag.evaluation.win_rates import agreement, summarise_verdicts

RATES = ("win_rate", "low", "high", "standard_error", "prefers_first", "agreement", "agreement_low", "agreement_high")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="+", type=Path, help="AlpacaEval annotations, a judged csv, or verdicts.csv")
    options(parser, "--bootstrap")


def run(arguments: argparse.Namespace) -> int:
    """Print JSON; rates in percent, as leaderboards have them. Several judges also get their agreement."""
    judges = [(path, judged) for path in arguments.file for judged in read_verdicts(path)]
    settings = {"seed": "winrate", "bootstrap": arguments.bootstrap}
    rates = [
        {"file": str(path), "judge": judged.judge, "unit": "percent", **summarise_verdicts(judged, **settings)}
        | {key: name for key, name in (("model", judged.model), ("against", judged.against)) if name}
        | {"note": ONE_SEED}
        for path, judged in judges
    ]
    pairs = [
        (one, other)
        for (path, one), (other_path, other) in itertools.combinations(judges, 2)
        if path != other_path or (one.model, one.against) == (other.model, other.against)  # else on other answers
    ]
    agreements = [result for one, other in pairs if (result := agreement(one, other, **settings))["n"]]
    content = rates[0] if len(rates) == 1 else {"judges": rates, "agreement": agreements}
    print(json.dumps(percent(content), indent=1))
    return 0


def percent(value: Any, key: str = "") -> Any:
    """Multiply every rate in `value` by 100, at any depth."""
    if isinstance(value, dict):
        return {name: percent(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [percent(inner) for inner in value]
    return 100 * value if isinstance(value, float) and key in RATES else value
