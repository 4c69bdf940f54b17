"""The commands of `prefdag`: every stage, and the tools in this folder.

Add a command in two steps. Write `cli/<name>.py`: a docstring that opens with a summary, `add_arguments(parser)`, and
`run(arguments) -> int`, which returns the exit code. Then list `<name>` in its group below. A stage
(`stages/<name>.py`) needs no entry: its options are read off the signature of its `run`. No module is imported until
its own command runs.
"""

import argparse
import ast
import difflib
import logging
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from prefdag.errors import UserError
from prefdag.provenance.sources import PACKAGE, parse_file

STAGES = "Run a stage, which reads manifests and writes one"
TOOLS = {
    "Set up": ("init", "check", "doctor", "lock", "imdb"),
    "Inspect": ("show", "plan", "why", "runs", "costs", "schema", "objectives"),
    "Compare": ("compare", "winrate", "ask", "sheet"),
    "Export": ("export", "register"),
    "Track": ("track", "ui"),
    "Measure": ("tune", "loss", "world"),
}
COMMON: dict[str, dict[str, Any]] = {
    "suite": {"nargs": "+", "help": "configs/<suite>.yaml, and files merged over it"},
    "results": {"type": Path, "help": "a suite's results, results/<suite>"},
    "--results": {"type": Path, "help": "results/<suite> (default: the suite that has the run)"},
    "--bootstrap": {"type": int, "default": 2000, "help": "resamples behind each interval (default: %(default)s)"},
}


class Parser(argparse.ArgumentParser):
    """A parser that keeps the lines of its description and raises `UserError` for a wrong option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, formatter_class=argparse.RawDescriptionHelpFormatter)
        level = self.add_argument_group("diagnostics").add_mutually_exclusive_group()
        for flag, name, value, meaning in (
            ("-v", "--verbose", logging.DEBUG, "print the traceback of an error"),
            ("-q", "--quiet", logging.ERROR, "print no notices, only errors"),
        ):
            level.add_argument(flag, name, dest="level", action="store_const", const=value, help=meaning)
        self.set_defaults(level=logging.INFO)

    def error(self, message: str) -> NoReturn:
        where = self.prog.removeprefix("prefdag").strip() or "command line"
        raise UserError(f"{where}: {message}; see `{self.prog} --help`")


class _Overview(Parser):
    def format_help(self) -> str:
        """List every command by group, each with the first line of its module's docstring."""
        lines = [f"{STAGES}:", *(_line(PACKAGE / "stages" / f"{name}.py") for name in stages())]
        for title, names in TOOLS.items():
            lines += ["", f"{title}:", *(_line(PACKAGE / "cli" / f"{name}.py") for name in names)]
        self.epilog = "\n".join(lines)
        return super().format_help()


def _line(module: Path) -> str:
    with module.open(encoding="utf-8") as stream:  # not imported: the help needs no torch
        summary = stream.readline().strip().strip('"')
    return f"  {module.stem:11} {summary}"


def overview() -> Parser:
    """Return the parser of `prefdag` itself, which only separates a command from its words."""
    parser = _Overview(
        prog="prefdag",
        usage="prefdag [-v | -q] COMMAND ...",
        description="Preference alignment of language models, from raw rows to a report, as one Snakemake DAG.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def stages() -> list[str]:
    """Return the names of all stages."""
    return sorted(path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py"))


def parser_of(name: str) -> Parser:
    """Return the parser of a stage or a tool. Raises `UserError` for an unknown name."""
    if name in stages():
        parser = Parser(prog=f"prefdag {name}")
        _add_stage_arguments(parser, name)
        return parser
    tools = [tool for group in TOOLS.values() for tool in group]
    if name not in tools:
        near = difflib.get_close_matches(name, [*stages(), *tools], n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        raise UserError(f"{name!r} is neither a stage nor a tool; {hint}`prefdag --help` lists them")
    module = import_module(f"prefdag.cli.{name}")
    parser = Parser(prog=f"prefdag {name}", description=module.__doc__)
    module.add_arguments(parser)
    return parser


def options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declare arguments that several commands share."""
    for name in names:
        parser.add_argument(name, **COMMON[name])


def _add_stage_arguments(parser: Parser, stage: str) -> None:
    """Declare `--config`, `--output` and one option per input, as the signature of the stage's `run` states them."""
    tree = parse_file(PACKAGE / "stages" / f"{stage}.py")
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    parser.description = ast.get_docstring(run)
    parser.add_argument("--config", required=True, metavar="JSON", help="the config keys that this stage reads")
    output = f"results/<suite>/{stage}/[<name>/]manifest.json"
    parser.add_argument("--output", required=True, type=Path, metavar="PATH", help=output)
    for argument, default in zip(run.args.kwonlyargs, run.args.kw_defaults):
        assert argument.annotation is not None
        name = f"--{argument.arg}"
        if ast.unparse(argument.annotation).startswith("list"):
            parser.add_argument(name, type=Path, nargs="*", default=[], metavar="PATH", help="manifests")
        else:
            parser.add_argument(name, type=Path, required=default is None, metavar="PATH", help="a manifest")
