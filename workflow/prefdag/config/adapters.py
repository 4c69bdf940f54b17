"""The names of the adapters, and how one of the user's own is named: `<file>.py:<function>`."""

import re
from pathlib import Path

from prefdag.errors import UserError

ADAPTERS = (
    "world", "hh", "pairs", "ranked", "labelled", "demonstrations", "tldr", "imdb", "align-anything", "saferlhf-better",
    "saferlhf-safer", "ultrafeedback", "shp", "stack-exchange",
)  # fmt: skip
RANKED = ("pairs", "ranked", "ultrafeedback", "stack-exchange")  # rows of them may hold more than two responses
SCORED = (*RANKED, "shp")  # rows of them may hold scores
OWN = re.compile(r"(?!/)([\w./+ -]+\.py):([^\W\d]\w*)")


def is_user_adapter(adapter: str) -> bool:
    """Whether an adapter is a function in a file of the user's own."""
    return adapter not in ADAPTERS


def adapter_files(adapter: str) -> tuple[Path, ...]:
    """The file of an adapter of the user's own; none for one of the package."""
    return (split_adapter(adapter)[0],) if is_user_adapter(adapter) else ()


def split_adapter(adapter: str) -> tuple[Path, str]:
    """File and function. Raises `UserError` where the adapter is not of that form."""
    found = OWN.fullmatch(adapter)
    if found is None:
        raise UserError(f"prepare.adapter: expected <file>.py:<function>, got {adapter!r}")
    return Path(found[1]), found[2]
