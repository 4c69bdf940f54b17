"""The source files of a stage, read from import statements without importing anything.

A manifest states a digest of each file of its job's code, so an edit reruns exactly the stages that import the file.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from prefdag.errors import UserError

PACKAGE = Path(__file__).parent.parent


def sources(stage: str, user_files: Iterable[Path] = ()) -> list[Path]:
    """Return the files of the package that `prefdag.stages.<stage>` imports, itself included, sorted.

    `prefdag.runtime.stage` is one of them because the stage imports it. `prefdag.cli.main` is not: it only starts the
    stage and prints errors. A user's files count with what they import from the package and from their own folder.
    """
    files = _follow_imports([PACKAGE / "stages" / f"{stage}.py", *user_files])
    _cached_tree.cache_clear()
    return files


def user_sources(path: Path) -> list[Path]:
    """Return a user's file and the files of its folder that it imports or reads, sorted.

    Raises:
        UserError: One of them is not valid Python, or imports in a way that is not followed.
    """
    return [file for file in _follow_imports([path]) if not file.is_relative_to(PACKAGE)]


def _follow_imports(pending: list[Path]) -> list[Path]:
    files: set[Path] = set()
    while pending:
        path = pending.pop()
        if path not in files:
            if not path.is_file():
                raise UserError(f"{path}: no such file; paths are relative to the suite's file, so correct it there")
            files.add(path)
            if path.suffix == ".py":
                pending += _imports(path) if path.is_relative_to(PACKAGE) else _imports_of_user_file(path)
    return sorted(files)


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    names, strings, relative = _scan(path)
    assert not relative, f"{path}: relative imports are not followed"
    return tuple([file for name in names for file in _files_of(name)] + _data_files(path, strings))


def _imports_of_user_file(path: Path) -> list[Path]:
    names, strings, relative = _scan(path)
    if relative:
        raise UserError(
            f"{path}: relative imports are not followed; write `import <module>` for a file of the same folder"
        )
    neighbours = [path.parent / name.partition(".")[0] for name in names]
    for folder in neighbours:
        if (folder / "__init__.py").is_file():
            raise UserError(f"{path}: the package {folder} is not followed; import modules of the file's own folder")
    files = [file for module in neighbours if (file := module.with_name(f"{module.name}.py")).is_file()]
    return [*files, *(file for name in names for file in _files_of(name)), *_data_files(path, strings)]


def _scan(path: Path) -> tuple[list[str], set[object], bool]:
    """Return the dotted names of a file that may be modules, its constants, and whether an import is relative."""
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
    """Return a module's file and the `__init__` of each package above it; nothing for other libraries."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return []
    files = []
    for depth in range(1, len(parts) + 1):
        module = PACKAGE.joinpath(*parts[1:depth])
        files += [file for file in (module / "__init__.py", module.with_suffix(".py")) if file.is_file()]
    return files


def _data_files(path: Path, constants: set[object]) -> list[Path]:
    """Return the data files that a module names in a string, in its own folder or its room's `templates` folder."""
    folders = [path.parent, path.parent / "templates", path.parent.parent / "templates"]
    candidates = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return [file for file in candidates if file.suffix not in (".py", "") and file.name in constants]


def parse_file(path: Path, content: bytes | None = None) -> ast.Module:
    """Return the syntax tree of a file, or of `content` in its place. Raises `UserError` for invalid Python."""
    try:
        return ast.parse(path.read_bytes() if content is None else content, str(path))
    except SyntaxError as error:
        raise UserError(f"{path}: not valid Python (line {error.lineno}: {error.msg}); fix it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid Python ({error}); fix it") from None


_cached_tree = cache(parse_file)  # cleared once a job's files are known: trees are large


def _tree(path: Path) -> ast.Module:
    return _cached_tree(path) if path.is_relative_to(PACKAGE) else parse_file(path)


def code_digests(stage: str, user_files: Iterable[Path] = ()) -> dict[str, str]:
    """Return a digest of each file of a job's code; comments, docstrings and layout do not change it.

    Returns:
        File, relative to the package or as the suite names it -> the first 16 digits of a sha256.
    """
    digests = {}
    for path in _follow_imports([PACKAGE / "stages" / f"{stage}.py", *user_files]):
        name = str(path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path)
        status = path.stat()
        digests[name] = _digest_at(path, status.st_mtime_ns, status.st_size)
    _cached_tree.cache_clear()
    return digests


@cache
def _digest_at(path: Path, modified: int, size: int) -> str:
    """Return the digest of a file as it is at that time; stages share most of their files."""
    return _short(_canonical(_tree(path)) if path.suffix == ".py" else path.read_bytes())


def digest_of(content: bytes, path: Path) -> str:
    """Return the digest of some content of a file. Raises `UserError` for invalid Python."""
    return _short(_canonical(parse_file(path, content)) if path.suffix == ".py" else content)


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _canonical(tree: ast.Module) -> bytes:
    """Return a syntax tree without docstrings, as text."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
