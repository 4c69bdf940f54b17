"""Write a sheet on which people judge the answers of two policies, blind and in random order.

Fill its column `preferred` with a, b or tie, and name the file in the suite's judges: `{people: FILE.csv}`.
"""

import argparse
from pathlib import Path

from prefdag.cli.commands import options
from prefdag.config.answer_sets import AnswerSet
from prefdag.errors import UserError
from prefdag.evaluation.compare import find_sides
from prefdag.evaluation.judge.run import Pair, pairs_of
from prefdag.evaluation.judge.sheets import write_sheet
from prefdag.evaluation.scores import match_rows, read_scores
from prefdag.seeds import generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a set of answers, or a row with seeds")
    parser.add_argument("b", help="what the suite compares A with: sft, or chosen")
    parser.add_argument("file", type=Path, help="the sheet, a new .csv file")
    parser.add_argument("--pairs", type=int, default=100, help="how many pairs to sample (default: %(default)s)")
    options(parser, "--results")


def run(arguments: argparse.Namespace) -> int:
    """Sample pairs of answers, put them on random sides, and write the sheet."""
    file = arguments.file
    if file.suffix != ".csv" or arguments.pairs < 1:
        raise UserError(f"prefdag sheet: expected a file that ends in .csv and at least one pair, got {file}")
    ours, theirs = find_sides((arguments.a, arguments.b), arguments.results)
    pairs = [pair for a in ours.folders for b in theirs.folders for pair in _pairs(a, b)]
    random = generator(0, "sheet")
    sampled = [pairs[index] for index in random.permutation(len(pairs))[: arguments.pairs]]
    write_sheet(file, sampled, (random.random(len(sampled)) < 0.5).tolist())
    print(f"{file}: {len(sampled)} of {len(pairs)} pairs")
    return 0


def _pairs(ours: Path, theirs: Path) -> list[Pair]:
    """Pair the answers of two folders of scores by prompt; their texts are in the suite's `generate` folders."""
    ours_scores, their_scores = read_scores(ours), read_scores(theirs)
    rows = match_rows(ours_scores, their_scores, more=AnswerSet.parse(theirs.name).is_chosen)
    keys = [(ours_scores.keys[row], their_scores.keys[other]) for row, other in rows]
    mine, others = (one.parent.parent / "generate" / one.name for one in (ours, theirs))
    return pairs_of(mine, others, keys)
