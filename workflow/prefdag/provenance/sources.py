"""Which first-party files a stage's code is made of, found without importing anything.

Snakemake compares these files by content, so an edit reruns exactly the stages that import it.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from prefdag.errors import UserError

PACKAGE = Path(__file__).parent.parent


def sources(stage: str, own: Iterable[Path] = ()) -> list[Path]:
    """Files of the package that `prefdag.stages.<stage>` imports, itself included, sorted.

    The harness (`prefdag.runtime.stage`) is among them because the stage imports it; `prefdag.cli.main` is not:
    it only looks up the stage and prints a user's mistake. own: the user's own files that the job runs as well; what
    they import from the package and from their own folder is counted with them.
    """
    found = _followed([PACKAGE / "stages" / f"{stage}.py", *own])
    _kept.cache_clear()
    return found


def user_sources(path: Path) -> list[Path]:
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
    names, strings, relative = _looked_through(path)
    assert not relative, f"{path}: relative imports are not followed"
    return tuple([file for name in names for file in _files_of(name)] + _read_beside(path, strings))


def _imported_by_own(path: Path) -> list[Path]:
    names, strings, relative = _looked_through(path)
    if relative:
        raise UserError(f"{path}: relative imports are not followed; write `import <module>` for a file beside it")
    beside = [path.parent / name.partition(".")[0] for name in names]
    for folder in beside:
        if (folder / "__init__.py").is_file():
            raise UserError(f"{path}: the package {folder} is not followed; import modules that lie beside the file")
    files = [file for at in beside if (file := at.with_name(f"{at.name}.py")).is_file()]
    return [*files, *(file for name in names for file in _files_of(name)), *_read_beside(path, strings)]


def _looked_through(path: Path) -> tuple[list[str], set[object], bool]:
    """Every module that a file imports and every name that may be one, dotted; its constants; any relative import?"""
    names: list[str] = []
    constants: set[object] = set()
    relative = False
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Constant):
            constants.add(node.value)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = relative or node.level > 0
            if node.module:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names, constants, relative


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


def _read_beside(path: Path, constants: set[object]) -> list[Path]:
    """Data files that a module names in a string: of its own folder, and of its room's `templates` folder."""
    folders = [path.parent, path.parent / "templates", path.parent.parent / "templates"]
    candidates = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return [file for file in candidates if file.suffix not in (".py", "") and file.name in constants]


def parse_file(path: Path) -> ast.Module:
    """A file's syntax tree. Raises `UserError` where it is not valid Python."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise UserError(f"{path}: not valid Python (line {error.lineno}: {error.msg}); mend it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid Python ({error}); mend it") from None


_kept = cache(parse_file)  # of the package's files, until a job's are known: trees are large


def _tree(path: Path) -> ast.Module:
    return _kept(path) if path.is_relative_to(PACKAGE) else parse_file(path)


def code_digest(stage: str, own: Iterable[Path] = ()) -> str:
    """sha256 of what a job's code says: comments, docstrings and layout do not change it."""
    digest = hashlib.sha256()
    for path in _followed([PACKAGE / "stages" / f"{stage}.py", *own]):
        digest.update(str(path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path).encode())
        digest.update(_meaning(_tree(path)) if path.suffix == ".py" else path.read_bytes())
    _kept.cache_clear()
    return digest.hexdigest()


def _meaning(tree: ast.Module) -> bytes:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
