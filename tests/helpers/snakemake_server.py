"""Snakemake, imported once: each call of a test is a fork of this process, which spares it two seconds of imports.

Requests come by stdin, a line each: arguments, folder, environment, files for stdout and stderr. Answers: exit codes.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from typing import Any

# Snakemake, and other people's modules that the Snakefile imports; nothing of prefdag: it is the copy's under test.
IMPORTS = ("snakemake.cli", "snakemake.api", "pydantic", "yaml", "jinja2.sandbox", "rich.progress", "huggingface_hub")


def become(request: dict[str, Any]) -> None:
    """Turn this fork into `snakemake` with its own folder, environment and files."""
    code = 1
    try:
        for target, path in (("out", 1), ("err", 2)):
            file = os.open(request[target], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, path)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[0] = request["folder"]
        sys.argv = ["snakemake", *request["arguments"]]
        import_module("snakemake.cli").main(request["arguments"])
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for name in IMPORTS:
        import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
