"""The `prefdag` command: parse its words and run a stage or a tool."""

import argparse
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

from prefdag.cli.commands import overview, parser_of, stages
from prefdag.cli.console import show_diagnostics
from prefdag.distributed.gpu_lease import take_gpus
from prefdag.distributed.launch import launch
from prefdag.distributed.ranks import is_rank, silence_other_ranks
from prefdag.errors import Stopped, UserError
from prefdag.os_errors import as_sentences
from prefdag.provenance.redaction import redact
from prefdag.runtime.warm_start import run_warm


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 2 for a user's mistake, 1 for any other failure."""
    words = sys.argv[1:] if argv is None else argv
    logger = show_diagnostics(logging.INFO)
    try:
        parser = overview()
        top = parser.parse_args(words)
        if top.version:
            from importlib.metadata import version  # 70 ms, which no other command needs

            print(f"prefdag {version('prefdag')}")
        elif top.command in (None, "help"):
            parser.print_help()
        else:
            options = words[: len(words) - len(top.words) - 1]  # before the command: as good as behind it
            code = _run(top.command, [*options, *top.words], logger)
            sys.stdout.flush()  # here rather than at exit, where a broken pipe prints a traceback
            return code
        sys.stdout.flush()
        return 0
    except UserError as mistake:
        silence_other_ranks()
        *others, last = str(mistake).split("\n")  # a suite may have several mistakes
        for sentence in others:
            logger.error("%s", sentence)
        logger.error("%s", last, exc_info=logger.isEnabledFor(logging.DEBUG))
        return 2
    except Stopped as stop:
        silence_other_ranks()
        logger.error("stopped by %s; the next run continues from its saved state", stop)
        return 128 + getattr(signal, str(stop), 15)
    except BrokenPipeError:
        if words and words[0] in stages():  # a pipe to another process, not to a reader
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
            return 1
        return _close_output()
    except Exception:  # redacted: more people read a log than may know a token
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def _close_output() -> int:
    """Leave no output to be flushed at exit: its reader, such as `head`, has gone. Return the status of SIGPIPE."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _run(name: str, words: Sequence[str], logger: logging.Logger) -> int:
    """Parse a command's words and run it."""
    arguments = parser_of(name).parse_args(words)
    logger.setLevel(arguments.level)
    if name in stages():
        return _run_stage(name, words, arguments)
    return int(import_module(f"prefdag.cli.{name}").run(arguments))


def _run_stage(name: str, words: Sequence[str], arguments: argparse.Namespace) -> int:
    """Run a stage in a fork of the warm server, in several processes, or in this one."""
    for elsewhere in (run_warm, launch):
        if (code := elsewhere([name, *words])) is not None:
            return code
    if not is_rank():
        take_gpus(name)
    paths = {key: value for key, value in vars(arguments).items() if key not in ("config", "output", "level")}
    with as_sentences(name, Path.cwd()):
        stage = _import_quickly(f"prefdag.stages.{name}")
        import_module("prefdag.runtime.stage").run_stage(name, stage, arguments.config, paths, arguments.output)
    return 0


def _import_quickly(name: str) -> ModuleType:
    """Import a module with the garbage collector off: it would find nothing and take a tenth of the time."""
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()
