"""The README and the documentation site: commands run, paths and figures exist, quoted messages are the program's."""

import ast
import json
import re
import shlex
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, checkout, environment
from prefdag.cli.commands import parser_of

PACKAGE = ROOT / "workflow/prefdag"
README = ROOT / "README.md"
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "stages.md")  # test_run runs stages.md
SAVED = re.compile(r"(?:Save this as|Write a suite, say) `([\w./]+)`.*?```\w+\n(.*?)```", re.S)


def commands() -> dict[str, list[str]]:
    """Return the commands of each page's `sh` blocks; one that an earlier page has is not repeated."""
    seen: set[str] = set()
    pages = {}
    for path in [README, ROOT / "docs/start.md", *sorted((ROOT / "docs").glob("[th]*/*.md"))]:
        blocks = re.findall(r"```sh\n(.*?)```", path.read_text(), re.S)
        lines = [line for line in "".join(blocks).splitlines() if line and not line.startswith("make ")]
        if new := [line for line in lines if line not in seen]:
            pages[str(path.relative_to(ROOT))] = new
        seen |= {line for line in lines if "mine" not in line}  # each page has its own configs/mine.yaml
    return pages


@pytest.mark.parametrize("page", commands())
def test_the_commands_of_a_page_run(page: str, tmp_path: Path):
    """In a clean checkout with rows and the files that the page says to save; Snakemake's commands as dry runs."""
    project = checkout(tmp_path / "clone")
    rows = [{"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
    (project.folder / "data").mkdir()
    (project.folder / "data/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in reversed(SAVED.findall((ROOT / page).read_text())):
        (project.folder / name).write_text(text)
    lines = [f"{line} -n" if re.match(r"snakemake(?!.* -n)", line) else line for line in commands()[page]]
    script = "\n".join([f'set -e; prefdag() {{ {sys.executable} -m prefdag "$@"; }}', *lines])
    variables = {**environment(), "PYTHONPATH": f"{project.folder}/workflow:{project.folder}"}
    variables["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-c", script], cwd=project.folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_commands_and_make_targets_that_pages_name_exist():
    """With their options: each `prefdag` line parses, though most need results of a run."""
    text = "\n".join(path.read_text() for path in [README, ROOT / "CONTRIBUTING.md", *PAGES])
    named = set(re.findall(r"^(?: {4})?prefdag (.+)", text, re.M)) | set(re.findall(r"`prefdag ([a-z_]+)", text))
    assert len(named) > 20
    for command in named:
        name, *words = shlex.split(re.split(r"\[| > ", command)[0])
        parser = parser_of(name)
        if words:
            parser.parse_args(words)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"reproduce", "test", "ui", "docs"} <= set(re.findall(r"(?:`|^ {4}|^)make ([a-z]+)", text, re.M)) <= targets


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 1200


def test_the_readmes_suite_is_ten_lines():
    block = next(block for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S) if "extends" in block)
    assert len(block.splitlines()) <= 10
    assert yaml.safe_load(block)["name"] == "mine"


def test_paths_and_figures_of_the_pages_exist():
    for page in [README, ROOT / "CONTRIBUTING.md", *PAGES]:
        text = page.read_text()
        for name in re.findall(r"`((?:configs|docs|tests|profiles|workflow|benchmarks)/[\w./-]+)`", text):
            assert (ROOT / name).exists() or name.startswith("configs/mine"), f"{page}: {name}"
        for name in re.findall(r"`([a-z]+/[\w/]+\.py)`", text):
            assert (ROOT / name).exists() or (PACKAGE / name).exists(), f"{page}: {name}"
        for figure in re.findall(r"!\[.*?\]\((\S+)\)", text):
            assert (page.parent / figure).stat().st_size < 300_000, f"{page}: {figure}"


def test_the_drawn_workflow_has_every_stage():
    stages_shown = set(re.findall(r"[a-z_]+", (ROOT / "docs/figures/dag.svg").read_text()))
    assert {path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py")} <= stages_shown


def messages() -> list[str]:
    """Return the messages that the page on errors quotes, without Snakemake's own."""
    text = (ROOT / "docs/howto/troubleshooting.md").read_text()
    return [line for line in re.findall(r"^ {4}(\S.*)$", text, re.M) if "LockException" not in line]


def test_quoted_messages_are_in_the_code():
    """The longest part between names, numbers and colons is text of the package."""
    paths = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "snakemake_logger_plugin_prefdag").rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in paths]
    strings = [_text(node) for node in chain.from_iterable(map(ast.walk, trees))]
    code = "\n".join(filter(None, strings))
    assert len(messages()) >= 15
    assert [message for message in messages() if max(re.split(r"…|: ", message), key=len) not in code] == []


def _text(node: ast.AST) -> str:
    """Return the text of a string or f-string, with an ellipsis for each value in it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_the_site_builds(tmp_path: Path):
    """Strictly: a broken link or anchor, or a page outside the navigation, is an error."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = (tmp_path / "site/reference/api/losses.html").read_text()
    assert "dpo" in losses and "beta" in losses
    assert "prefdag sft" in (tmp_path / "site/reference/cli.html").read_text()
