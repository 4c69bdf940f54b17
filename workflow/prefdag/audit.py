"""The audit: what became of every row, in numbers and row numbers; and a page of rows as the model sees them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from transformers import PreTrainedTokenizerBase

from prefdag.store import Store

LISTED = 1000  # row numbers listed for one reason; the count is always whole
BIN = 16  # tokens in one bar of a length histogram
SHOWN = 20


@dataclass
class SplitAudit:
    """Counts of one split, gathered row by row."""

    rows_in: int = 0
    used: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    first_longer: int = 0

    def drop(self, reason: str, row: int) -> None:
        self.dropped.setdefault(reason, []).append(row)

    def unusable(self, dropped: dict[str, list[int]]) -> None:
        """Count rows that the adapter could not use."""
        for reason, rows in dropped.items():
            self.rows_in += len(rows)
            self.dropped.setdefault(reason, []).extend(rows)

    def use(self, prompt: int, responses: list[int]) -> None:
        """Count a row that is used; lengths in tokens."""
        self.used += 1
        self.first_longer += len(responses) > 1 and responses[0] > max(responses[1:])
        names = ("chosen", "rejected") if len(responses) == 2 else [f"response_{k + 1}" for k in range(len(responses))]
        for name, length in zip(("prompt", *names), (prompt, *responses), strict=True):
            self.lengths.setdefault(name, Counter())[length] += 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows_in": self.rows_in,
            "used": self.used,
            "dropped": {
                reason: {"count": len(rows), "rows": sorted(rows)[:LISTED]}
                for reason, rows in sorted(self.dropped.items())
            },
            "chosen_longer": self.first_longer / self.used if self.used else None,
            "tokens": {name: _length_summary(counts) for name, counts in self.lengths.items()},
        }

    def findings(self, split: str) -> list[str]:
        """The lines that must be seen at the end of the run."""
        lines = [f"{split}: {self.used} of {self.rows_in} rows used"]
        for reason, rows in sorted(self.dropped.items()):
            listed = ", ".join(map(str, sorted(rows)[:10])) + (", ..." if len(rows) > 10 else "")
            lines.append(f"{split}: {len(rows)} dropped, {reason}: rows {listed}")
        return lines


def _length_summary(counts: Counter[int]) -> dict[str, Any]:
    ordered = sorted(counts.elements())
    histogram = Counter(length // BIN * BIN for length in ordered)
    return {
        "total": sum(ordered),
        "median": ordered[len(ordered) // 2],
        "max": ordered[-1],
        "histogram": {str(begin): histogram[begin] for begin in sorted(histogram)},
    }


def samples_page(store: Store, tokenizer: PreTrainedTokenizerBase, title: str) -> str:
    """An HTML page of the first rows as the model sees them: every token, its id, its role."""
    roles = ["prompt", *(("chosen", "rejected") if store.num_responses == 2 else ["response"] * store.num_responses)]
    rows = []
    for index in range(min(SHOWN, len(store))):
        comparison = store[index]
        parts = zip(roles, [comparison.prompt, *comparison.responses], strict=True)
        shown = [
            {"role": role, "tokens": [(int(i), _visible(tokenizer, int(i)), int(i) in special) for i in ids]}
            for special in [set(tokenizer.all_special_ids)]
            for role, ids in parts
        ]
        rows.append({"row": int(store.rows[index]), "parts": shown})
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("samples.html.jinja").render(title=title, rows=rows)


def _visible(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = str(tokenizer.decode([token]) or tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "\u21b5\n")
