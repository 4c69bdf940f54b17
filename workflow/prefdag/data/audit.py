"""The audit of a dataset: counts and row numbers, findings to print, and the HTML pages of audit and samples."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from prefdag.data.dedup import NEAR, DuplicateIndex
from prefdag.data.preprocess import EncodedRow
from prefdag.data.token_store import Store

LISTED = 1000  # row numbers listed for one reason; the count covers all rows
BIN = 16  # tokens in one bar of a length histogram
BATCH = 32  # comparisons of one batch, in the order of rows, for which padding is measured
ONE_SIDED = 20  # labels; if all name one position, it is no accident (2^-19)
BALANCED = 4 / 3  # largest ratio of desirable to undesirable weight that KTO's paper recommends; the smallest is 1
POSITION_BIAS = 0.02  # a position is favoured if its share exceeds an even one by this and four standard errors
SHOWN = 20  # rows on the page of samples
AUDIT, SAMPLES = "audit.html.jinja", "samples.html.jinja"
LOOK = "look.css"  # in the templates of the package; named, so that it is one of the sources of a stage


@dataclass
class SplitAudit:
    """Counts of one split, row by row. With `counted: all`, each assistant turn counts as a row."""

    rows_in: int = 0
    used: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    characters: dict[str, list[int]] = field(default_factory=dict)
    against_scores: list[int] = field(default_factory=list)  # rows whose chosen response has the lower score
    empty_prompts: list[int] = field(default_factory=list)
    positions: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)  # of single responses: desirable or undesirable
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    first_longer: int = 0
    second_longer: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"packed": 0, "apart": 0, "padded": 0})
    _batch: list[int] = field(default_factory=list)  # lengths of the sequences in the current batch
    _batched: int = 0

    def count_dropped(self, reason: str, row: int) -> None:
        """Count a row that is not used."""
        self.rows_in += 1
        self.dropped.setdefault(reason, []).append(row)

    def count_used(self, row: EncodedRow) -> None:
        """Count a row that is used."""
        self.rows_in += 1
        self.used += 1
        if row.cut:
            self.cut.setdefault(row.cut, []).append(row.row)
        for name in row.characters:
            self.characters.setdefault(name, []).append(row.row)
        if row.is_prompt_empty:
            self.empty_prompts.append(row.row)
        if row.scores and len(row.scores) == 2 and row.scores[0] < row.scores[1]:
            self.against_scores.append(row.row)
        if row.scores and len(row.scores) == 1:
            self.labels[label_name(row.scores[0])] += 1
        if row.position is not None:
            self.positions[row.position] += 1
        self._measure(len(row.prompt), [len(response) for response in row.responses])

    def _measure(self, prompt: int, responses: list[int]) -> None:
        if len(responses) > 1:
            self.first_longer += responses[0] > max(responses[1:])
            self.second_longer += responses[0] < max(responses[1:])
        names = ("chosen", "rejected") if len(responses) == 2 else [f"response_{k + 1}" for k in range(len(responses))]
        for name, length in zip(("prompt", *names), (prompt, *responses), strict=True):
            self.lengths.setdefault(name, Counter())[length] += 1
        self.tokens["packed"] += prompt + sum(responses)
        self.tokens["apart"] += prompt * len(responses) + sum(responses)
        self._batch += [prompt + length for length in responses]
        self._batched += 1
        if self._batched == BATCH:
            self._pad()

    def _labels(self) -> dict[str, Any]:
        counts = {name: self.labels[name] for name in map(label_name, (1.0, 0.0))}
        return {**counts, "balance": _balance(*counts.values())}

    def _pad(self) -> None:
        self.tokens["padded"] += len(self._batch) * max(self._batch, default=0)
        self._batch, self._batched = [], 0

    def to_dict(self, index: DuplicateIndex) -> dict[str, Any]:
        """Return the split's part of audit.json; `index` compares its rows with each other."""
        self._pad()
        repeats, most, first = index.most_repeated()
        return {
            "rows_in": self.rows_in,
            "used": self.used,
            "dropped": _listed(self.dropped),
            "cut": _listed(self.cut),
            "characters": _listed(self.characters),
            "duplicates": _pairs(index.duplicates()),
            "near_duplicates": _pairs(index.near_duplicates()),
            "contradictions": _pairs(index.contradictions()),
            "prompts": {"repeated_rows": repeats, "most_rows_of_one": most, "its_first_row": first},
            "best_position": {str(position): self.positions[position] for position in sorted(self.positions)},
            "chosen_longer": self.first_longer / self.used if self.used else None,
            "rejected_longer": self.second_longer / self.used if self.used else None,
            "tokens": {name: _length_summary(counts) for name, counts in self.lengths.items()},
            "savings": {**self.tokens, **_savings(**self.tokens)},
            **({"against_scores": _rows(self.against_scores)} if self.against_scores else {}),
            **({"empty_prompts": _rows(self.empty_prompts)} if self.empty_prompts else {}),
            **({"labels": self._labels()} if self.labels else {}),
        }


def label_name(score: float) -> str:
    """Return what a single response with that label is called."""
    return "desirable" if score == 1 else "undesirable"


def _listed(reasons: dict[str, list[int]]) -> dict[str, Any]:
    return {reason: _rows(rows) for reason, rows in sorted(reasons.items())}


def _rows(rows: list[int]) -> dict[str, Any]:
    return {"count": len(rows), "rows": sorted(rows)[:LISTED]}


def _pairs(pairs: list[tuple[int, int]]) -> dict[str, Any]:
    return {"count": len(pairs), "rows": sorted(pairs)[:LISTED]}


def _savings(packed: int, apart: int, padded: int) -> dict[str, float]:
    """Return the share of tokens that storing a prompt once saves, and of padding in batches of `BATCH` rows."""
    return {"shared_prompt": 1 - packed / apart if apart else 0.0, "padding": 1 - apart / padded if padded else 0.0}


def _length_summary(counts: Counter[int]) -> dict[str, Any]:
    num, total, median = sum(counts.values()), 0, 0
    for length in sorted(counts):
        total += counts[length]
        if total > num // 2:
            median = length
            break
    histogram: Counter[int] = Counter()
    for length, count in counts.items():
        histogram[length // BIN * BIN] += count
    return {
        "total": sum(length * count for length, count in counts.items()),
        "median": median,
        "max": max(counts),
        "histogram": {str(begin): histogram[begin] for begin in sorted(histogram)},
    }


def findings(split: str, audit: dict[str, Any]) -> list[str]:
    """Return the lines to print at the end of the run, from a split's part of audit.json."""
    lines = [f"{split}: {audit['used']} of {audit['rows_in']} rows used"]
    for key, word in (("dropped", "dropped"), ("cut", "cut"), ("characters", "with")):
        for reason, entry in audit[key].items():
            lines.append(f"{split}: {entry['count']} {word}, {reason}: rows {_row_list(entry)}")
    if empty := audit.get("empty_prompts"):
        lines.append(f"{split}: {empty['count']} with an empty prompt: rows {_row_list(empty)}")
    if labels := audit.get("labels"):
        weights = f"; KTO balances them with {labels['balance']}" if split == "train" and labels["balance"] else ""
        counts = f"{labels['desirable']} desirable and {labels['undesirable']} undesirable responses"
        lines.append(f"{split}: {counts}{weights}")
    if against := audit.get("against_scores"):
        lines.append(
            f"{split}: {against['count']} with a lower score of the chosen response than of the rejected one: "
            f"rows {_row_list(against)}"
        )
    for key, words in (
        ("duplicates", "repeat an earlier row"),
        ("near_duplicates", f"share {NEAR:.0%} of an earlier row"),
        ("contradictions", "contradict an earlier row"),
    ):
        if audit[key]["count"]:
            lines.append(f"{split}: {audit[key]['count']} {words}: rows {_row_list(audit[key])}")
    prompts = audit["prompts"]
    if prompts["repeated_rows"]:
        most = f"that of row {prompts['its_first_row'] + 1} comes {prompts['most_rows_of_one']} times"
        lines.append(f"{split}: {prompts['repeated_rows']} rows repeat a prompt; {most}")
    return lines + _position_bias(split, audit["best_position"])


def _balance(desirable: int, undesirable: int) -> str | None:
    """Return the weights of KTO that balance the labels; None if equal weights do, or if one label is missing.

    Reference: Ethayarajh et al. 2024, eq. 8: lambda_d n_d / (lambda_u n_u) is from 1 to 4/3.
    """
    if not desirable or not undesirable or 1 <= (ratio := desirable / undesirable) <= BALANCED:
        return None
    if ratio < 1:
        return f"lambda_d from {1 / ratio:.3g} to {BALANCED / ratio:.3g} and lambda_u 1"
    return f"lambda_d 1 and lambda_u from {ratio / BALANCED:.3g} to {ratio:.3g}"


def _position_bias(split: str, positions: dict[str, int]) -> list[str]:
    num = sum(positions.values())
    if num < ONE_SIDED:
        return []
    position, count = max(positions.items(), key=lambda item: item[1])
    named = f"response {int(position) + 1}"
    if count == num:
        return [f"{split}: suspicious: every one of {num} labels says that {named} is best"]
    even_share = 1 / max(2, len(positions))
    if count / num - even_share > max(POSITION_BIAS, 4 * (even_share * (1 - even_share) / num) ** 0.5):
        return [f"{split}: position bias: {named} is best in {count / num:.1%} of {num}"]
    return []


def _row_list(entry: dict[str, Any]) -> str:
    """Return an entry's first rows, counted from 1 as in all messages."""
    rows = [row[0] if isinstance(row, list | tuple) else row for row in entry["rows"][:10]]
    return ", ".join(str(row + 1) for row in rows) + (", ..." if entry["count"] > 10 else "")


def audit_page(report: Mapping[str, Any]) -> str:
    """Return audit.json as an HTML page: findings, then counts, then histograms of lengths."""
    lines = {split: findings(split, audit) for split, audit in report["splits"].items()}
    return _render(AUDIT, report=report, findings=lines)


def samples_page(store: Store, tokenizer: PreTrainedTokenizerBase, title: str) -> str:
    """Return an HTML page of the first rows as the model sees them: every token, its id, its role."""
    roles = ["prompt", *(("chosen", "rejected") if store.num_responses == 2 else ["response"] * store.num_responses)]
    is_labelled = store.num_responses == 1 and store.scores is not None
    special = set(tokenizer.all_special_ids)
    rows = []
    for index in range(min(SHOWN, len(store))):
        comparison = store[index]
        texts = zip(roles, [comparison.prompt, *comparison.responses], strict=True)
        tokens = [
            {"role": role, "tokens": [(int(i), _visible(tokenizer, int(i)), int(i) in special) for i in ids]}
            for role, ids in texts
        ]
        if is_labelled and store.scores is not None:
            label = label_name(float(store.scores[index, 0]))
            tokens[1] |= {"role": "chosen" if label == "desirable" else "rejected", "label": label}
        rows.append({"row": int(store.rows[index]), "parts": tokens})
    return _render(SAMPLES, title=title, rows=rows)


def _visible(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = str(tokenizer.decode([token]) or tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "\u21b5\n")


def _render(template: str, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parents[level] / "templates" for level in (0, 1)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**content)
