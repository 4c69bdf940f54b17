"""Compare two runs prompt by prompt: differences with intervals, win rate, configs.

A and B are policies of results/<suite> by name, rows by their name without the seed (all their seeds are used), or
paths of folders of scores. The win rate is that of A over B by the headline reward. A star marks an interval that
leaves 0 out; without several seeds a side there is none, because such an interval says nothing about other trainings.
"""

import argparse
import csv
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from prefdag.cli.commands import options
from prefdag.evaluation.compare import Comparison, Side, compare, find_sides
from prefdag.evaluation.over_seeds import ONE_SEED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a policy, a row with seeds, or a folder of scores")
    parser.add_argument("b", help="what A is compared with")
    options(parser, "--results", "--bootstrap")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of tables")
    output.add_argument("--csv", action="store_true", help="print CSV instead of tables")


def run(arguments: argparse.Namespace) -> int:
    comparison = compare(*find_sides((arguments.a, arguments.b), arguments.results), bootstrap=arguments.bootstrap)
    if arguments.json:
        print(json.dumps(as_dict(comparison), indent=1))
    elif arguments.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(_rows(comparison))
    else:
        _show(comparison)
    return 0


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON has it; win rates are fractions."""
    columns = {
        name: {"a": ours, "b": theirs, "difference": gap.to_dict()}
        for name, (ours, theirs, gap) in comparison.columns.items()
    }
    both = {
        which: {"name": one.name, "folders": [str(folder) for folder in one.folders]}
        for which, one in (("a", comparison.ours), ("b", comparison.theirs))
    }
    configs = {key: {"a": ours, "b": theirs} for key, (ours, theirs) in comparison.configs.items()}
    return {
        **both,
        "prompts": comparison.num_prompts,
        "columns": columns,
        "win_rate": comparison.win_rate.to_dict(),
        "configs": configs,
        "one_seed": ONE_SEED if comparison.has_one_seed else None,
    }


def _rows(comparison: Comparison) -> list[list[Any]]:
    rows: list[list[Any]] = [["column", "a", "b", "difference", "low", "high", "se", "note"]]
    note = ONE_SEED if comparison.has_one_seed else ""
    rows += [
        [name, ours, theirs, gap.mean, gap.low, gap.high, gap.se, note]
        for name, (ours, theirs, gap) in comparison.columns.items()
    ]
    rate = comparison.win_rate
    return [
        *rows,
        ["win_rate", rate.mean, 1 - rate.mean]
        + [2 * rate.mean - 1, 2 * rate.low - 1, 2 * rate.high - 1, 2 * rate.se, note],
    ]


def _show(comparison: Comparison) -> None:
    ours, theirs = _called(comparison.ours), _called(comparison.theirs)
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(title=f"A = {ours}, B = {theirs}: {comparison.num_prompts} prompts", title_justify="left")
    for column in ("", "A", "B", "A - B, paired [95 %]"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, (first, second, gap) in comparison.columns.items():
        clear = " *" if (gap.low > 0 or gap.high < 0) and not comparison.has_one_seed else "  "
        table.add_row(
            name, f"{first:.3f}", f"{second:.3f}", f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]{clear}"
        )
    console.print(table)
    rate = comparison.win_rate
    console.print(f"win rate of A over B by reward: {rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}]", highlight=False)
    what = "prompts" if len(comparison.ours.folders) + len(comparison.theirs.folders) == 2 else "seeds and prompts"
    console.print(
        f"intervals over {what}; {ONE_SEED if comparison.has_one_seed else '* leaves 0 out'}", highlight=False
    )
    if comparison.configs:
        differing = Table(title="what differs", title_justify="left")
        for column in ("key", "A", "B"):
            differing.add_column(column, overflow="fold")
        for key, values in comparison.configs.items():
            differing.add_row(key, *("-" if value is None else str(value) for value in values))
        console.print(differing)


def _called(one: Side) -> str:
    return f"{one.name} ({len(one.folders)} seeds)" if len(one.folders) > 1 else one.name
