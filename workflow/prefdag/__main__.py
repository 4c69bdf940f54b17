"""The `prefdag` command: a stage (`prefdag sft ...`) or a tool (`prefdag show configs/hh.yaml`)."""

import gc
import signal
import sys
import traceback
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

from prefdag.errors import Stopped, UserError
from prefdag.journal import redact
from prefdag.launch import launched
from prefdag.lease import take_gpus
from prefdag.ranks import is_rank, let_the_first_speak
from prefdag.system_errors import as_sentences
from prefdag.together import run_together
from prefdag.warm import run_warm


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `prefdag` command: a stage, or a tool."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else "help"
    try:
        if name.isidentifier() and util.find_spec(f"prefdag.stages.{name}"):
            if (code := run_warm(argv)) is not None:
                return code
            if (code := launched(argv)) is not None:
                return code
            if (code := run_together(argv)) is not None:
                return code
            if not is_rank():
                take_gpus(name)
            with as_sentences(name, Path.cwd()):
                stage = _imported(f"prefdag.stages.{name}")
                return int(import_module("prefdag.stage").command(name, stage, argv[1:]))
        if name.isidentifier() and util.find_spec(f"prefdag.tools.{name}"):
            return int(import_module(f"prefdag.tools.{name}").main(argv[1:]))
        raise UserError(f"{name!r} is neither a stage nor a tool; `prefdag help` lists them")
    except UserError as mistake:
        let_the_first_speak()
        print(f"prefdag: {redact(str(mistake))}", file=sys.stderr)
        return 2
    except Stopped as stop:
        let_the_first_speak()
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


if __name__ == "__main__":
    sys.exit(main())
