"""Import a user's Python files (losses, adapters); no other module executes them."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from prefdag.errors import Stopped, UserError
from prefdag.provenance.sources import user_sources


def import_user_file(path: Path) -> ModuleType:
    """Import a file as a module. Raises `UserError` where importing it raises."""
    # `python -m` also searches the working directory, whose files are not among the job's sources.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path.cwd()]
    sys.meta_path.insert(0, _NeighbourFinder(path))
    module_name = f"own_{path.stem}"  # no other module has this name
    spec = _spec(module_name, path)
    module = sys.modules[module_name] = module_from_spec(spec)
    assert spec.loader is not None
    try:
        spec.loader.exec_module(module)
    except (Stopped, UserError):
        raise
    except Exception as error:
        raise UserError(f"{path}: importing it raised {describe_error(error, path)}; fix the file and rerun") from error
    return module


class _NeighbourFinder(MetaPathFinder):
    """Find the modules of the user file's folder that are among the job's sources, and no others."""

    def __init__(self, path: Path) -> None:
        self.files = {file.stem: file for file in user_sources(path) if file != path}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return _spec(name, self.files[name]) if name in self.files else None


class _FromSource(SourceFileLoader):
    """Compile the source every time: a byte-code cache compares whole seconds and sizes, and would miss 0.1 -> 0.2."""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)


def _spec(name: str, path: Path) -> ModuleSpec:
    spec = spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert spec is not None
    return spec


def describe_error(error: BaseException, path: Path) -> str:
    """Return the exception in one line, with the last line of the user's file in its traceback."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if line is None else f"{text} (line {line})"
