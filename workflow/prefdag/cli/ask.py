"""Ask a local model which answer of each judged pair is better, in both orders, and write its verdicts.

The model reads a judge's question in its chat template and the beginning of a verdict, such as `Preferred:`. Its
log-probs of A and B are compared; nothing is sampled. Two judges are written: `<name>`, for which a pair is a tie if
the verdict follows the order, and `<name>-averaged`, which adds the log-odds of both orders. `prefdag winrate FILE
VERDICTS` then prints order bias, and agreement with the file's own labels.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefdag.config.sections.judge import LLM, PROMPTS
from prefdag.errors import UserError
from prefdag.evaluation.judge.prompts import read_template
from prefdag.evaluation.judge.run import Pair
from prefdag.evaluation.verdicts import read_judged_pairs
from prefdag.seeds import generator

COLUMNS = ("prompt_id", "sample", "judge", "verdict", "shown_first", "shown_second")
ODDS = ("log_odds_first", "log_odds_second")  # of ours over theirs
Values = NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a judged csv: query, two responses, and the one that is preferred")
    parser.add_argument(
        "model", type=Path, help="folder of a model and its tokenizer, such as results/<suite>/sft/model"
    )
    parser.add_argument("verdicts", type=Path, help="the verdicts, a .csv file")
    parser.add_argument("--name", default="", help="the judge's name (default: the suite and stage of the folder)")
    parser.add_argument("--prompt", default=PROMPTS[1], help=f"{', '.join(PROMPTS)}, or a file (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=100, help="how many pairs to sample (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Sample judged pairs, compute the log-odds in both orders, and write two judges' verdicts."""
    if arguments.verdicts.suffix != ".csv" or arguments.pairs < 1 or arguments.threads < 1:
        raise UserError("ask: expected verdicts in a .csv file, and at least one pair and one thread")
    template = read_template(LLM.parse({"model": "local", "prompt": arguments.prompt}, "ask"))
    pairs = read_judged_pairs(arguments.file)
    sampled = [pairs[index] for index in generator(0, "ask").permutation(len(pairs))[: arguments.pairs]]
    from prefdag.rewards import local_judge  # torch, after the arguments and the file are checked

    first, second = local_judge.log_odds(sampled, template, arguments.model, arguments.threads)
    name = arguments.name or "-".join(arguments.model.parts[-3:-1]) or arguments.model.name
    write_verdicts(arguments.verdicts, sampled, name, first, second)
    print(f"{arguments.verdicts}: {len(sampled)} of {len(pairs)} judged pairs, each in both orders")
    return 0


def write_verdicts(path: Path, pairs: Sequence[Pair], name: str, first: Values, second: Values) -> None:
    """Write a row per judge and pair, in the form of a suite's verdicts.csv. first, second: log-odds of ours, [N]."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*COLUMNS, *ODDS])
        for pair, *odds in zip(pairs, first.tolist(), second.tolist(), strict=True):
            orders = [wins(one) for one in odds]
            writer.writerow([pair.prompt, 0, name, sum(orders) / 2, *orders, *odds])
            writer.writerow([pair.prompt, 0, f"{name}-averaged", wins(sum(odds)), "", "", *odds])


def wins(odds: float) -> float:
    """Return the verdict of log-odds: 1 above 0, 0 below, 0.5 at 0."""
    return 0.5 * (1 + (odds > 0) - (odds < 0))
