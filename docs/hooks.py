"""MkDocs hooks: write the reference pages from the code, and bring in the Markdown files of the repository's root."""

import os
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "workflow/prefdag"
# The rooms whose functions a user's own loss, adapter or analysis calls; stages and commands have pages of their own.
API_ROOMS = ("losses", "models", "data", "rewards", "evaluation", "training", "theory", "config", "provenance")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages: suite keys, command line, Python API, contributing, changelog."""
    sys.path[:0] = [str(ROOT / "workflow"), str(ROOT)]
    pages = {
        "reference/suite.md": _suite_keys(),
        "reference/cli.md": _command_line(),
        "reference/api.md": _api_index(),
        **{f"reference/api/{room}.md": _api_room(room) for room in API_ROOMS},
        "contributing.md": _root_page("CONTRIBUTING.md"),
        "changelog.md": _root_page("CHANGELOG.md"),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def _suite_keys() -> str:
    """Return the page of `prefdag schema --table`."""
    from prefdag.cli.schema import table

    page = table().replace("`docs/objectives.md`", "[Losses](../objectives.md)")
    # Outside code spans, `<name>` would be an HTML tag.
    parts = page.split("`")
    return "`".join(part.replace("<", "&lt;") if at % 2 == 0 else part for at, part in enumerate(parts))


def _command_line() -> str:
    """Return the help of the command, and of every stage and tool."""
    from prefdag.cli.commands import TOOLS, overview, parser_of, stages

    os.environ["COLUMNS"] = "84"  # the width of a page
    parts = ["# Command line\n", "Generated from `prefdag --help` and `prefdag COMMAND --help`.\n"]
    parts += ["```text", overview().format_help().rstrip(), "```\n"]
    for name in (*stages(), *(tool for group in TOOLS.values() for tool in group)):
        parts += [f"## prefdag {name}\n", "```text", parser_of(name).format_help().rstrip(), "```\n"]
    return "\n".join(parts)


def _modules(room: str) -> list[str]:
    """Return the dotted names of a room's modules."""
    paths = sorted(path for path in (PACKAGE / room).rglob("[a-z]*.py"))
    return [".".join(path.with_suffix("").relative_to(PACKAGE.parent).parts) for path in paths]


def _api_index() -> str:
    lines = ["# Python API\n", "Generated from the docstrings. Every room of the package has a page.\n"]
    for room in API_ROOMS:
        modules = ", ".join(f"`{name.removeprefix(f'prefdag.{room}.')}`" for name in _modules(room))
        lines.append(f"- [prefdag.{room}](api/{room}.md): {modules}")
    return "\n".join(lines) + "\n"


def _api_room(room: str) -> str:
    return "\n".join([f"# prefdag.{room}\n", *(f"::: {module}\n" for module in _modules(room))])


def _root_page(name: str) -> str:
    """Return a Markdown file of the repository's root with its links into docs/ made relative to docs/."""
    return re.sub(r"\]\(docs/", "](", (ROOT / name).read_text(encoding="utf-8"))
