"""Suite files as they are written: strict YAML, one mapping over another, lists of rows and grids of them."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefdag.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; a key written twice is a mistake and not the last one's luck."""
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


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice in the mapping of line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mappings key by key, everything else replaced whole."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def rows_of(rows: Any, key: str, where: str) -> list[dict[str, Any]]:
    """The rows of a list in a suite, none where it is left out. Raises `UserError` for what is no list of rows."""
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{where}: {key}: expected a list of rows such as `- {{name: dpo, method: dpo, beta: 0.1}}`")
    return rows


def grid_of(grid: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a grid: every key that holds a list takes each of its values; the name says which."""
    rows = []
    for entry in grid:
        swept = [key for key, value in entry.items() if isinstance(value, list) and key != "seeds"]
        for choice in itertools.product(*(entry[key] for key in swept)):
            chosen = dict(zip(swept, choice, strict=True))
            parts = [title_of(entry), *(f"{key}{str(value).rpartition(':')[2]}" for key, value in chosen.items())]
            rows.append({**entry, **chosen, "name": "-".join(parts)})
    return rows


def title_of(entry: dict[str, Any]) -> str:
    """What a grid's entry is called: its name, else its method."""
    return str(entry.get("name", entry.get("method"))).rpartition(":")[2]
