"""Python files of the user's own (losses, adapters), run: the one place where they are executed, in their jobs."""

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
    """The file as a module. Raises `UserError`, one sentence, where importing it raises."""
    # `python -m` looks for modules in the working directory too: what lies there is not counted, so not to be found.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path.cwd()]
    sys.meta_path.insert(0, _Beside(path))
    module_name = f"own_{path.stem}"  # a name of no other module, whatever the file is called
    spec = _spec(module_name, path)
    module = sys.modules[module_name] = module_from_spec(spec)
    assert spec.loader is not None
    try:
        spec.loader.exec_module(module)
    except (Stopped, UserError):
        raise
    except Exception as error:
        raise UserError(
            f"{path}: importing it raised {describe_error(error, path)}; mend the file and rerun"
        ) from error
    return module


class _Beside(MetaPathFinder):
    """Finds the modules beside the user's file that are counted among the job's sources, and nothing else there."""

    def __init__(self, path: Path) -> None:
        self.files = {file.stem: file for file in user_sources(path) if file != path}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return _spec(name, self.files[name]) if name in self.files else None


class _FromSource(SourceFileLoader):
    """Byte code is told from stale by whole seconds and sizes; an edit of 0.1 to 0.2 must not go unseen."""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)


def _spec(name: str, path: Path) -> ModuleSpec:
    spec = spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert spec is not None
    return spec


def describe_error(error: Exception, path: Path) -> str:
    """The exception in one line, with the last line of the user's file that it went through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if line is None else f"{text} (line {line})"
