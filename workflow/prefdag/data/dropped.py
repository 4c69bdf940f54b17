"""Say how many rows a dataset lost, and why, from its audit."""

from collections.abc import Collection, Mapping
from typing import Any

MANY = 0.2  # share of lost rows, or of cut answers, that is warned of


def lost_rows(audit: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows that are dropped, and the rows read, of a split's part of audit.json."""
    return audit["rows_in"] - audit["used"], audit["rows_in"]


def reasons(audit: Mapping[str, Any]) -> str:
    """Return why rows are dropped, the most frequent reason first, such as `12 tie, 3 empty chosen`."""
    counts = sorted(audit["dropped"].items(), key=lambda item: (-item[1]["count"], item[0]))
    return ", ".join(f"{entry['count']:,} {reason}" for reason, entry in counts)


def warnings(splits: Mapping[str, Mapping[str, Any]], expected: Collection[str] = ()) -> list[str]:
    """Return a sentence for each split that lost many of its rows, and for labels that are all the same.

    Args:
        splits: of audit.json.
        expected: reasons that are no loss.
    """
    sentences = []
    for split, audit in splits.items():
        lost, read = lost_rows(audit)
        labels = audit.get("labels", {}) if split == "train" else {}
        for kind, other in ("desirable", "undesirable"), ("undesirable", "desirable"):
            if labels and not labels[other]:
                sentences.append(f"{split}: all {labels[kind]:,} responses are {kind}; add rows with the other label")
        meant = sum(entry["count"] for reason, entry in audit["dropped"].items() if reason in expected)
        if lost - meant > MANY * read:
            share = f"{lost / read:.0%}"
            sentences.append(f"{split}: {lost:,} of {read:,} rows ({share}) are dropped: {reasons(audit)}")
    return sentences
