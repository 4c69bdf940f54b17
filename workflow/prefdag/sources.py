"""Which first-party files a stage's code is made of, found without importing anything.

Snakemake compares these files by content, so an edit reruns exactly the stages that import it.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def sources(stage: str) -> list[Path]:
    """Files of the package that `prefdag.stages.<stage>` imports, itself included, sorted.

    The harness (`prefdag.stage`) is one of them because the stage's module imports it; `__main__` is not: it only
    looks the stage up and prints a user's mistake.
    """
    found: set[Path] = set()
    waiting = [PACKAGE / "stages" / f"{stage}.py"]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path) if path.suffix == ".py" else ()
    return sorted(found)


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    files: list[Path] = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative imports are not followed"
            continue
        for name in names:
            files += _files_of(name)
    return tuple(files + _read_beside(path))


def _files_of(name: str) -> list[Path]:
    """The module's file and the `__init__` of every package above it; nothing for other people's modules."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return []
    files = []
    for depth in range(1, len(parts) + 1):
        at = PACKAGE.joinpath(*parts[1:depth])
        files += [file for file in (at / "__init__.py", at.with_suffix(".py")) if file.is_file()]
    return files


def _read_beside(path: Path) -> list[Path]:
    """Files that a module reads from its own folder, such as page templates: every string that names one."""
    strings = {node.value for node in ast.walk(_parsed(path)) if isinstance(node, ast.Constant)}
    return [file for file in path.parent.iterdir() if file.suffix not in (".py", "") and file.name in strings]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def code_digest(stage: str) -> str:
    """sha256 of what a stage's code says: comments, docstrings and layout do not change it."""
    digest = hashlib.sha256()
    for path in sources(stage):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(_meaning(path) if path.suffix == ".py" else path.read_bytes())
    return digest.hexdigest()


def _meaning(path: Path) -> bytes:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
