"""`prefdag sheet A B FILE.csv`: answers of two policies, side by side and without their names, for people to judge."""

import argparse
from pathlib import Path

from prefdag.errors import UserError
from prefdag.evaluation.compare import sides
from prefdag.evaluation.judge.run import Pair, pairs_of
from prefdag.evaluation.judge.sheets import write_sheet
from prefdag.evaluation.scores import matched, read_scores
from prefdag.seeds import generator


def main(argv: list[str]) -> int:
    """Draw pairs of answers of A and B to the same prompts, in random order and on random sides, and write the sheet.

    Fill its column `preferred` (a, b or tie) and name the file in the suite's judges: `{people: FILE.csv}`.
    """
    parser = argparse.ArgumentParser(prog="prefdag sheet", description=main.__doc__)
    parser.add_argument("a", help="a set of answers, or a row with seeds")
    parser.add_argument("b", help="what it is held against in the suite: sft, or chosen")
    parser.add_argument("file", type=Path, help="the sheet, a .csv that is not there yet")
    parser.add_argument("--pairs", type=int, default=100, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--results", type=Path, help="results/<suite>; left out: the one that has both")
    given = parser.parse_args(argv)
    if given.file.suffix != ".csv" or given.pairs < 1:
        raise UserError(f"prefdag sheet: expected a file that ends in .csv and at least one pair, got {given.file}")
    ours, theirs = sides((given.a, given.b), given.results)
    pairs = [pair for a in ours.folders for b in theirs.folders for pair in _pairs(a, b)]
    draw = generator(given.seed, "sheet")
    drawn = [pairs[index] for index in draw.permutation(len(pairs))[: given.pairs]]
    write_sheet(given.file, drawn, (draw.random(len(drawn)) < 0.5).tolist())
    print(f"{given.file}: {len(drawn)} of {len(pairs)} pairs")
    return 0


def _pairs(ours: Path, theirs: Path) -> list[Pair]:
    """The answers of two folders of scores, prompt by prompt; the texts lie beside them, in `generate`."""
    ours_scores, their_scores = read_scores(ours), read_scores(theirs)
    rows = matched(ours_scores, their_scores, more=theirs.name.startswith("chosen"))
    keys = [(ours_scores.keys[row], their_scores.keys[other]) for row, other in rows]
    mine, others = (one.parent.parent / "generate" / one.name for one in (ours, theirs))
    return pairs_of(mine, others, keys)
