"""`prefdag compare A B`: two runs of a suite side by side, paired by prompt, and what differs between them."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prefdag.evaluation.compare import Comparison, Side, compare, sides


def main(argv: list[str]) -> int:
    """Print means, paired differences with 95 % intervals and the win rate of A over B by the headline reward.

    A and B are policies of results/<suite> by name, rows by their name without the seed (then over all their seeds), or
    folders of scores by path.
    """
    parser = argparse.ArgumentParser(prog="prefdag compare", description=main.__doc__)
    parser.add_argument("a", help="a policy, a row with seeds, or a folder of scores")
    parser.add_argument("b", help="what it is held against")
    parser.add_argument("--results", type=Path, help="results/<suite>; left out: the one that has both")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples behind each interval")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--csv", action="store_true")
    given = parser.parse_args(argv)
    found = compare(*sides((given.a, given.b), given.results), bootstrap=given.bootstrap)
    if given.json:
        print(json.dumps(as_dict(found), indent=1))
    elif given.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(_rows(found))
    else:
        _show(found)
    return 0


def as_dict(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON has it; win rates are shares."""
    columns = {
        name: {"a": ours, "b": theirs, "difference": gap.to_dict()}
        for name, (ours, theirs, gap) in found.columns.items()
    }
    told = {
        which: {"name": one.name, "folders": [str(folder) for folder in one.folders]}
        for which, one in (("a", found.ours), ("b", found.theirs))
    }
    configs = {key: {"a": ours, "b": theirs} for key, (ours, theirs) in found.configs.items()}
    return {
        **told,
        "prompts": found.num_prompts,
        "columns": columns,
        "win_rate": found.win_rate.to_dict(),
        "configs": configs,
    }


def _rows(found: Comparison) -> list[list[Any]]:
    rows: list[list[Any]] = [["column", "a", "b", "difference", "low", "high", "se"]]
    rows += [
        [name, ours, theirs, gap.mean, gap.low, gap.high, gap.se] for name, (ours, theirs, gap) in found.columns.items()
    ]
    rate = found.win_rate
    return [
        *rows,
        ["win_rate", rate.mean, 1 - rate.mean, 2 * rate.mean - 1, 2 * rate.low - 1, 2 * rate.high - 1, 2 * rate.se],
    ]


def _show(found: Comparison) -> None:
    ours, theirs = _called(found.ours), _called(found.theirs)
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(title=f"A = {ours}, B = {theirs}: {found.num_prompts} prompts", title_justify="left")
    for column in ("", "A", "B", "A - B, paired [95 %]"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, (first, second, gap) in found.columns.items():
        clear = " *" if gap.low > 0 or gap.high < 0 else "  "
        table.add_row(
            name, f"{first:.3f}", f"{second:.3f}", f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]{clear}"
        )
    console.print(table)
    rate = found.win_rate
    console.print(f"win rate of A over B by reward: {rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}]", highlight=False)
    what = "prompts" if len(found.ours.folders) + len(found.theirs.folders) == 2 else "seeds and prompts"
    console.print(f"intervals over {what}; * leaves 0 out", highlight=False)
    if found.configs:
        differing = Table(title="what differs", title_justify="left")
        for column in ("key", "A", "B"):
            differing.add_column(column, overflow="fold")
        for key, values in found.configs.items():
            differing.add_row(key, *("-" if value is None else str(value) for value in values))
        console.print(differing)


def _called(one: Side) -> str:
    return f"{one.name} ({len(one.folders)} seeds)" if len(one.folders) > 1 else one.name
