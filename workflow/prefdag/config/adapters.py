"""Names of the adapters and what their rows may hold, read from the text of `data/adapters/builtin.py`.

An adapter is a function with the decorator `@adapter()`; hyphens take the place of underscores in its name. The file is
parsed, not imported, so a suite is checked without the data libraries, and an edit of an adapter reruns only the stages
that run it. A user's adapter is named `<file>.py:<function>`; it may have the decorator too.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from prefdag.errors import UserError
from prefdag.provenance.sources import parse_file

USER_ADAPTER = re.compile(r"(?!/)([\w./+ -]+\.py):([^\W\d]\w*)")


@dataclass(frozen=True)
class AdapterInfo:
    """What the rows of an adapter may hold.

    Attributes:
        ranked: more than two responses, with scores.
        scored: scores.
        single: one labelled response each; None if that is not known before the rows are read.
    """

    ranked: bool
    scored: bool
    single: bool | None = False


def declared_adapters(path: Path) -> dict[str, AdapterInfo]:
    """Return the functions of a file that have the decorator `@adapter()`, in order, with what it declares."""
    declared = {}
    for function in (node for node in parse_file(path).body if isinstance(node, ast.FunctionDef)):
        for decorator in function.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "adapter":
                flags = {keyword.arg: ast.literal_eval(keyword.value) for keyword in decorator.keywords}
                ranked = flags.get("ranked", False)
                declared[function.name] = AdapterInfo(
                    ranked, scored=ranked or flags.get("scored", False), single=flags.get("single", False)
                )
    return declared


_BUILTIN = declared_adapters(Path(__file__).parent.parent / "data/adapters/builtin.py")
ADAPTERS = {name.replace("_", "-"): info for name, info in _BUILTIN.items()}
RANKED = tuple(name for name, info in ADAPTERS.items() if info.ranked)
SCORED = (*RANKED, *(name for name, info in ADAPTERS.items() if info.scored and not info.ranked))


def is_user_adapter(adapter: str) -> bool:
    """Return whether an adapter is a function in a user's file."""
    return adapter not in ADAPTERS


def adapter_files(adapter: str) -> tuple[Path, ...]:
    """Return the file of a user's adapter; none for one of the package."""
    return (split_adapter(adapter)[0],) if is_user_adapter(adapter) else ()


def split_adapter(adapter: str) -> tuple[Path, str]:
    """Split `<file>.py:<function>` into file and function. Raises `UserError` for another form."""
    match = USER_ADAPTER.fullmatch(adapter)
    if match is None:
        raise UserError(f"prepare.adapter: expected <file>.py:<function>, got {adapter!r}")
    return Path(match[1]), match[2]


def adapter_info(adapter: str) -> AdapterInfo:
    """Return what the rows of an adapter may hold; a user's function without the decorator may hold anything."""
    if not is_user_adapter(adapter):
        return ADAPTERS[adapter]
    path, function = split_adapter(adapter)
    undeclared = AdapterInfo(ranked=True, scored=True, single=None)
    return declared_adapters(path).get(function, undeclared) if path.is_file() else undeclared
