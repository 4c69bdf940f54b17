"""`prefdag help`: the stages and tools there are, a line each."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def main(argv: list[str]) -> int:
    """Print the first line of every command's docstring."""
    for kind in ("stages", "tools"):
        print(f"{kind}:")
        for path in sorted((PACKAGE / kind).glob("[a-z]*.py")):
            first = path.read_text(encoding="utf-8").splitlines()[0].strip('"')
            print(f"  {path.stem:12} {first}")
    return 0
