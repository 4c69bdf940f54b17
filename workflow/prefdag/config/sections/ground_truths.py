"""Names of the ground truths, read from the text of `rewards/ground_truth.py` without importing it."""

import ast

from prefdag.provenance.sources import PACKAGE, parse_file


def _has_decorator(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and "ground_truth" in map(ast.unparse, node.decorator_list)


_FUNCTIONS = filter(_has_decorator, parse_file(PACKAGE / "rewards/ground_truth.py").body)
GROUND_TRUTHS = (*(node.name for node in _FUNCTIONS if isinstance(node, ast.FunctionDef)), "classifier")
