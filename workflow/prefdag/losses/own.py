"""A loss in a Python file of the user's own, run: the one place where such a file is executed, in its job."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor

from prefdag.config.objectives.own import Own, parts
from prefdag.errors import Stopped, UserError
from prefdag.logprobs import LogProbs
from prefdag.sources import sources_of_own


def own_loss(objective: Own) -> Callable[..., Any]:
    """The user's function with its options bound, called with (policy, <the inputs it reads> by name).

    Raises `UserError`, one sentence naming file and function, where the file cannot be imported, the function raises,
    or what it returns is not one floating-point value per comparison, [B], and after them, of a loss that reads
    `state`, the next state as a dict of numbers.
    """
    path, name = parts(objective.method)
    function = getattr(_imported(path), name)
    options = objective.parameters()

    def compute(policy: LogProbs, **inputs: Any) -> Any:
        try:
            found = function(policy, **inputs, **options)
        except (Stopped, UserError):
            raise
        except Exception as error:
            raise UserError(f"{path}: {name} raised {_told(error, path)}; mend the function and rerun") from error
        place = f"{path}: {name}"
        if "state" not in objective.reads:
            return _checked(found, policy, place)
        values, state = _with_state(found, place)
        return _checked(values, policy, place), state

    return compute


def _imported(path: Path) -> ModuleType:
    # `python -m` looks for modules in the working directory too: what lies there is not counted, so not to be found.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path.cwd()]
    sys.meta_path.insert(0, _Beside(path))
    module_name = f"own_loss_{path.stem}"  # a name of no other module, whatever the file is called
    spec = _spec(module_name, path)
    module = sys.modules[module_name] = module_from_spec(spec)
    assert spec.loader is not None
    try:
        spec.loader.exec_module(module)
    except (Stopped, UserError):
        raise
    except Exception as error:
        raise UserError(f"{path}: importing it raised {_told(error, path)}; mend the file and rerun") from error
    return module


class _Beside(MetaPathFinder):
    """Finds the modules beside the user's file that are counted among the job's sources, and nothing else there."""

    def __init__(self, path: Path) -> None:
        self.files = {file.stem: file for file in sources_of_own(path) if file != path}

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


def _told(error: Exception, path: Path) -> str:
    """The exception in one line, with the last line of the user's file that it went through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if line is None else f"{text} (line {line})"


def _with_state(found: Any, place: str) -> tuple[Any, dict[str, float]]:
    """Values and next state, if that is what the function returned: the state is saved as JSON between steps."""
    match found:
        case (values, dict(state)) if all(isinstance(key, str) for key in state):
            if all(isinstance(value, (int, float)) for value in state.values()):
                return values, state
    raise UserError(f"{place} reads `state`, so it must return (values, state), the state a dict of numbers by name")


def _checked(values: Any, policy: LogProbs, place: str) -> Tensor:
    """What the function returned, if it is one float per comparison that follows the policy."""
    expected = f"expected one floating-point value per comparison, [{policy.shape[0]}]"
    if not isinstance(values, Tensor):
        raise UserError(f"{place} returned {type(values).__name__}; {expected}, as a tensor")
    if values.shape != policy.shape[:1] or not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise UserError(f"{place} returned {kind} values of shape {list(values.shape)}; {expected}")
    if policy.tokens.requires_grad and not values.requires_grad:
        raise UserError(f"{place} returned values without a gradient; compute them from `policy`, undetached")
    return values
