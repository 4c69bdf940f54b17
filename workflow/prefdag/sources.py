"""Which first-party files a stage's code is made of, found without importing anything.

Snakemake compares these files by content, so an edit reruns exactly the stages that import it.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from prefdag.errors import UserError

PACKAGE = Path(__file__).parent


def sources(stage: str, own: Iterable[Path] = ()) -> list[Path]:
    """Files of the package that `prefdag.stages.<stage>` imports, itself included, sorted.

    The harness (`prefdag.stage`) is one of them because the stage's module imports it; `__main__` is not: it only
    looks the stage up and prints a user's mistake. own: files of the user's own that the job runs as well; what they
    import from the package and from their own folder is counted with them.
    """
    return _followed([PACKAGE / "stages" / f"{stage}.py", *own])


def sources_of_own(path: Path) -> list[Path]:
    """A file of the user's own and the files of its folder that it imports or reads, sorted.

    Raises `UserError` where one of them is not valid Python or imports in a way that is not followed.
    """
    return [file for file in _followed([path]) if not file.is_relative_to(PACKAGE)]


def _followed(waiting: list[Path]) -> list[Path]:
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            if not path.is_file():
                raise UserError(f"{path}: no such file; its path is taken from the suite's")
            found.add(path)
            if path.suffix == ".py":
                waiting += _imported(path) if path.is_relative_to(PACKAGE) else _imported_by_own(path)
    return sorted(found)


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    tree = parsed(path)
    assert not _relative(tree), f"{path}: relative imports are not followed"
    return tuple([file for name in _names(tree) for file in _files_of(name)] + _read_beside(path, tree))


def _imported_by_own(path: Path) -> list[Path]:
    tree = parsed(path)
    if _relative(tree):
        raise UserError(f"{path}: relative imports are not followed; write `import <module>` for a file beside it")
    beside = [path.parent / name.partition(".")[0] for name in _names(tree)]
    for folder in beside:
        if (folder / "__init__.py").is_file():
            raise UserError(f"{path}: the package {folder} is not followed; import modules that lie beside the file")
    files = [file for at in beside if (file := at.with_name(f"{at.name}.py")).is_file()]
    return [*files, *(file for name in _names(tree) for file in _files_of(name)), *_read_beside(path, tree)]


def _relative(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def _names(tree: ast.Module) -> list[str]:
    """Every module that a file imports, and every name that may be one, dotted."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


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


def _read_beside(path: Path, tree: ast.Module) -> list[Path]:
    """Files that a module reads from its own folder, such as page templates: every string that names one."""
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return [file for file in path.parent.iterdir() if file.suffix not in (".py", "") and file.name in strings]


def parsed(path: Path) -> ast.Module:
    """A file's syntax tree. Raises `UserError` where it is not valid Python."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise UserError(f"{path}: not valid Python (line {error.lineno}: {error.msg}); mend it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid Python ({error}); mend it") from None


def code_digest(stage: str, own: Iterable[Path] = ()) -> str:
    """sha256 of what a job's code says: comments, docstrings and layout do not change it."""
    digest = hashlib.sha256()
    for path in sources(stage, own):
        digest.update(str(path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path).encode())
        digest.update(_meaning(path) if path.suffix == ".py" else path.read_bytes())
    return digest.hexdigest()


def _meaning(path: Path) -> bytes:
    tree = parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
