"""The command line: every command is listed and declared without its imports; a mistake is one sentence."""

import inspect
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path

import pytest

from conftest import environment
from prefdag.cli.commands import TOOLS, parser_of, stages
from prefdag.cli.main import main

COMMANDS = [*stages(), *(name for group in TOOLS.values() for name in group)]
HEAVY = {"torch", "numpy", "pandas", "pydantic", "mlflow", "yaml", "rich", "importlib.metadata"}


def stderr_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_overview_lists_every_command_and_imports_none():
    ask = "import sys; from prefdag.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=environment())
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line[2] not in " -"]
    assert listed == COMMANDS
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("name", stages())
def test_the_options_of_a_stage_are_the_arguments_of_its_run(name: str):
    """Read from the syntax tree, they are what Python itself says of the signature."""
    run = import_module(f"prefdag.stages.{name}").run
    hints = typing.get_type_hints(run)
    expected = {"config": True, "output": True}
    for argument, parameter in inspect.signature(run).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            many = typing.get_origin(hints[argument]) is list
            expected[argument] = not many and parameter.default is parameter.empty
    declared = {one.dest: one.required for one in parser_of(name)._actions if one.dest not in ("help", "level")}
    assert declared == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leave:
        main([name, "--help"])
    assert leave.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: prefdag {name} ") and len(parser_of(name).description or "") > 20


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    line = stderr_line(capsys, "prefrence")
    assert line.startswith("prefdag: 'prefrence' is neither a stage nor a tool; did you mean `preference`?")
    assert "did you mean" not in stderr_line(capsys, "frobnicate")


def test_a_wrong_option_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    line = stderr_line(capsys, "compare", "a", "b", "--bootstrap", "many")
    assert line == "prefdag: compare: argument --bootstrap: invalid int value: 'many'; see `prefdag compare --help`"
    line = stderr_line(capsys, "sft", "--colour")
    assert line.startswith("prefdag: sft: the following arguments are required: --config, --output, --base, ")
    assert stderr_line(capsys, "--colour").startswith("prefdag: command line: unrecognized arguments: --colour; see")


def test_verbose_adds_the_traceback_before_or_behind_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    suite = str(tmp_path / "none.yaml")
    first = stderr_line(capsys, "show", suite)
    for words in (["-v", "show", suite], ["show", suite, "--verbose"]):
        assert main(words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == first and lines[1] == "Traceback (most recent call last):"


def test_the_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("prefdag 0.")
