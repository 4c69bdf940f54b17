"""Plain English and the size of things: words and names that the style guide replaces, docstrings, ceilings."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, tracked_files

PACKAGE = ROOT / "workflow/prefdag"
NAMES = {"found", "told", "kept", "own", "here", "given", "drawn"}
WORDS = re.compile(
    r"\b(beside|besides|lies|stands(?! for)|anew|nobody|mend|mended|told|bears|need be|whoever|wherever)\b", re.I
)
# Hits that are right: (file, word), and why.
ALLOWED: dict[tuple[str, str], str] = {
    ("tests/unit/models/test_packing_plan.py", "given"): "hypothesis.given",
    ("tests/unit/data/test_token_store.py", "given"): "hypothesis.given",
    ("tests/unit/data/test_hostile_files.py", "given"): "hypothesis.given",
    ("tests/unit/data/test_beginnings.py", "given"): "hypothesis.given",
    ("tests/unit/training/test_step_order.py", "given"): "hypothesis.given",
}
# Text that is not the project's prose.
NOT_PROSE = {"docs/log.md", "LICENSE", "tests/workflow/test_style.py"}
# Modules of data: lists of English words that the embedded world's reviews are made of.
NOT_PROSE |= {"workflow/prefdag/data/synthetic/lexicon.py", "workflow/prefdag/data/synthetic/grammar.py"}
SUFFIXES = (".py", ".smk", ".md", ".yaml", ".yml", ".jinja", ".toml")


def hits(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, word) of each banned variable name in code and each banned word in prose."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        for number, line in enumerate(text.splitlines(), start=1):
            yield from ((number, match[0].lower()) for match in WORDS.finditer(line))
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string in NAMES:
            yield token.start[0], token.string
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield from ((token.start[0], match[0].lower()) for match in WORDS.finditer(token.string))


def test_plain_english() -> None:
    """No file uses a name or a word that has a plainer form, outside the list of those that are right."""
    wrong = []
    for path in tracked_files():
        name = str(path.relative_to(ROOT))
        if path.suffix in SUFFIXES and name not in NOT_PROSE:
            wrong += [f"{name}:{line}: {word}" for line, word in hits(path) if (name, word) not in ALLOWED]
    assert not wrong, f"{len(wrong)} words or names to replace:\n" + "\n".join(wrong[:200])


def test_every_allowed_word_is_used() -> None:
    for name, word in ALLOWED:
        assert word in {hit for _, hit in hits(ROOT / name)}, f"{name}: {word} is allowed and not used"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("found = 1\n", ["found"]),
        ('"""A file beside it."""\n', ["beside"]),
        ("x = 1  # nobody reads this\n", ["nobody"]),
        ("founding = 'stands'\n", ["stands"]),
        ("beside_ = 1\n", []),
    ],
)
def test_a_banned_word_is_noticed(source: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert [word for _, word in hits(path)] == expected


def undocumented() -> list[str]:
    """Public functions whose docstring leaves arguments unexplained.

    More than five arguments want an Args section, tensors their shapes. A loss states its inputs by their names, a
    stage's `run` takes the manifests that its rule lists.
    """
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or room in ("losses", "testing"):
                continue
            text = ast.get_docstring(node) or ""
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            kinds = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation]
            has_tensors = any(re.search(r"\bTensor\b", kind) for kind in kinds)
            is_stage = room == "stages" and node.name == "run"
            explained = "Args:" in text or is_stage or not (len(arguments) > 5 or has_tensors)
            if not explained and (len(arguments) > 5 or not re.search(r"\[.*\]|any shape", text)):
                missing.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    return missing


def test_public_functions_explain_their_arguments() -> None:
    missing = undocumented()
    assert not missing, f"{len(missing)} docstrings lack Args:\n" + "\n".join(missing)


def test_ceilings() -> None:
    """A function 60 lines, a module 300, rules 120, the Snakefile 40, a folder 30 modules."""
    for path in tracked_files():
        lines = len(path.read_text(errors="replace").splitlines())
        if path.suffix == ".smk":
            assert lines <= 120, path
        if path.name == "Snakefile":
            assert lines <= 40, path
        if path.suffix == ".py" and path.is_relative_to(PACKAGE):
            assert lines <= 300, path
            assert path.stem not in ("utils", "helpers", "misc", "base", "manager"), path
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno is not None
                    assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 30, f"{folder}: {len(modules)} modules"


def test_packages_import_nothing() -> None:
    """A stage's code counts every package's `__init__`, so they are empty."""
    for path in PACKAGE.rglob("__init__.py"):
        assert not path.read_text(), path


def test_names_of_test_modules_differ() -> None:
    """pytest imports them by name alone, and collects only the first of two."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [one for one, other in zip(names, names[1:]) if one == other] == []
