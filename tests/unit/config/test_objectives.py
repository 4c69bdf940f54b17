"""docs/objectives.md lists every loss of the package and its options, escaped for Markdown."""

import re
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from conftest import ROOT
from prefdag.cli.objectives import page
from prefdag.config.objectives import OBJECTIVES, Objective
from prefdag.schema import Positive


class Shown(Objective):
    """Takes <all> of `a_b`|c."""

    paper = "Doe 1900, A_note*"
    formula = "max(0, |D| - beta)"
    reads = frozenset({"labels", "reference"})
    responses: ClassVar[str] = "one"
    scope: ClassVar[str] = "step"
    first_step: ClassVar[str] = "log(2)"
    conventions: ClassVar[str] = "some tools\n    take means"
    read_with: ClassVar[dict[str, tuple[str, str]]] = {"whole": ("of", "sums")}
    method: Literal["shown"]
    beta: Positive = 2.0
    size: int | None = Field(None, ge=1, description="how many; a|b")
    of: Literal["sums", "means"]
    whole: bool = False


def test_the_page_is_the_registrys():
    """`prefdag objectives > docs/objectives.md` after a change of any entry."""
    assert (ROOT / "docs/objectives.md").read_text() == page()


def test_every_loss_is_there_once_with_its_options():
    sections = re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", page(), re.M | re.S)
    assert sorted(method for method, _ in sections) == sorted(OBJECTIVES)
    for method, text in sections:
        entry = OBJECTIVES[method]
        assert re.findall(r"^\| `(\w+)` \|", text, re.M) == [key for key in entry.model_fields if key != "method"]
        assert f"```text\n{entry.formula}\n```" in text
        assert "- **Source**: " in text


def test_an_entry_as_it_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(OBJECTIVES, "shown", Shown)
    (section,) = re.findall(r"^## Single labelled responses\n.*?(?=^## )", page(), re.M | re.S)
    assert section.splitlines()[2].endswith(", [`shown`](#shown)")
    assert section[section.index("### `shown`") :].strip() == EXPECTED.strip()


def test_every_row_of_every_table_has_the_cells_of_its_head(monkeypatch: pytest.MonkeyPatch):
    """A bare | in a formula or a description would open another cell."""
    monkeypatch.setitem(OBJECTIVES, "shown", Shown)
    rows = re.findall(r"^\|.*\|$(?:\n^\|.*\|$)*", page(), re.M)
    assert len(rows) > len(OBJECTIVES) // 2
    for table in rows:
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table


EXPECTED = r"""
### `shown`

Takes \<all\> of `a_b`|c.

```text
max(0, |D| - beta)
```

- **Source**: Doe 1900, A\_note\*
- **Reads**: `labels`, `reference`
- **Responses**: one, labelled
- **Scope**: a whole step
- **First step**: `log(2)`
- **Conventions**: some tools take means

| option | default | allowed | meaning |
|---|---|---|---|
| `beta` | `2.0` | a number above 0 |  |
| `size` | `null` | a whole number at least 1, or `null` | how many; a\|b |
| `of` | **stated** | `sums` or `means` |  |
| `whole` | `false` | `true` or `false` | with `of: sums` alone |
"""
