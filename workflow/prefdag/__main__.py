"""Run `python -m prefdag`: the same as the `prefdag` command."""

import sys

from prefdag.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
