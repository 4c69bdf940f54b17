"""Cells of a CSV that people open: a spreadsheet would compute a text that begins like a formula."""

FORMULAS = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20'")  # the wide forms too; the apostrophe so that reading is exact


def cell_of(text: str) -> str:
    """Return a text as a cell: behind an apostrophe if it begins like a formula.

    Reference: OWASP, CSV injection.
    """
    return f"'{text}" if text.startswith(FORMULAS) else text


def text_of(cell: str) -> str:
    """Return the text of a cell that `cell_of` made."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULAS) else cell
