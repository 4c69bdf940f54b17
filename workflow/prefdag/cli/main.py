"""The `prefdag` command: a stage (`prefdag sft ...`) or a tool (`prefdag show configs/hh.yaml`)."""

import gc
import signal
import sys
import traceback
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

from prefdag.distributed.gpu_lease import take_gpus
from prefdag.distributed.launch import launch
from prefdag.distributed.ranks import is_rank, silence_other_ranks
from prefdag.errors import Stopped, UserError
from prefdag.os_errors import as_sentences
from prefdag.provenance.journal import redact
from prefdag.runtime.warm_start import run_warm


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `prefdag` command: a stage, or a tool."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else "help"
    if name in ("help", "--help", "-h"):
        return _list_commands()
    try:
        if name.isidentifier() and util.find_spec(f"prefdag.stages.{name}"):
            if (code := run_warm(argv)) is not None:
                return code
            if (code := launch(argv)) is not None:
                return code
            if not is_rank():
                take_gpus(name)
            with as_sentences(name, Path.cwd()):
                stage = _imported(f"prefdag.stages.{name}")
                return int(import_module("prefdag.runtime.stage").command(name, stage, argv[1:]))
        if name.isidentifier() and util.find_spec(f"prefdag.cli.{name}"):
            return int(import_module(f"prefdag.cli.{name}").main(argv[1:]))
        raise UserError(f"{name!r} is neither a stage nor a tool; `prefdag help` lists them")
    except UserError as mistake:
        silence_other_ranks()
        print(f"prefdag: {redact(str(mistake))}", file=sys.stderr)
        return 2
    except Stopped as stop:
        silence_other_ranks()
        print(
            f"prefdag: stopped by {stop}; the next run continues from what was saved of it",
            file=sys.stderr,
        )
        return 128 + getattr(signal, str(stop), 15)
    except Exception:  # a log is read by more people than may know a token
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def _imported(name: str) -> ModuleType:
    """Import a stage with the garbage collector asleep: it finds nothing in there, and takes a tenth of the time."""
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()


PACKAGE = Path(__file__).parent.parent


def _list_commands() -> int:
    """Print the first line of every command's docstring."""
    for kind in ("stages", "cli"):
        print(f"{kind}:")
        for path in sorted((PACKAGE / kind).glob("[a-z]*.py")):
            first = path.read_text(encoding="utf-8").splitlines()[0].strip('"')
            print(f"  {path.stem:12} {first}")
    return 0
