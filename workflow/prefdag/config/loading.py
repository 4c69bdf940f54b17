"""Read the YAML of suites, merge mappings key by key, and add the defaults that follow from other sections."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefdag.errors import UserError

# Keys of a suite that may state a path.
PATH_KEYS = frozenset(
    ("extends", "lock", "source", "tokenizer", "train", "validation", "test", "labelled", "ood")
    + ("adapter", "template", "prompt", "people", "method")
)

# Sections that every suite has, stated or not, with the suite's seed. An empty one has its defaults.
ALWAYS = ("prepare", "sft", "reference", "preference", "generate", "score")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises `UserError` for a duplicate key, of which YAML would keep the last."""
    try:
        with path.open(encoding="utf-8") as stream:
            values = yaml.load(stream, Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such suite file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def check_no_home(values: Any, where: str, inside: str = "") -> None:
    """Raise `UserError` if a path begins with `~`: no shell expands it, and its home is this machine's alone."""
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        name = f"{inside}.{key}" if inside else str(key)
        if key in PATH_KEYS and isinstance(value, str) and value.startswith("~"):
            raise UserError(f"{where}: {name}: `~` is not expanded, got {value!r}; write the path without it")
        if isinstance(value, Mapping | list):
            check_no_home(value, where, name)


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"duplicate key {key!r} in the mapping of line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` over `below`: mappings key by key; other values are replaced."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite's keys with the sections that are not stated, and keys whose default follows from other sections.

    Args:
        values: the keys as stated, not validated yet; what has the wrong type is left for validation.
    """
    filled = {**values, **{name: {} for name in ALWAYS if values.get(name) is None}}
    stated = values.get("data")
    data: dict[str, Any] = stated if isinstance(stated, dict) else {}
    score, prepare = filled["score"], filled["prepare"]
    if isinstance(score, dict):
        filled["score"] = score = {"reward": _reward_of(filled, data), **score}
        if score["reward"] == "trained":
            filled.setdefault("reward", {})
    if isinstance(prepare, dict):
        world = {"adapter": "world", "template": "continuation"} if data.get("source") == "world" else {}
        filled["prepare"] = {**world, **prepare}
    return filled


def _reward_of(values: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return what measures answers: the classifier of the suite, the world's ground truth, or a reward model."""
    if values.get("classifier"):
        return "classifier"
    return "vader" if data.get("source") == "world" else "trained"
