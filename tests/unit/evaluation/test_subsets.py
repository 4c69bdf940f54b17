"""Accuracy by subset: what belongs to one, what is counted, and rows that cannot be read."""

import numpy as np
import pytest

from prefdag.errors import UserError
from prefdag.evaluation.subsets import LENGTHS, accuracy_by_subset, labels_of, length_classes

HARM = {"Drugs": True, "Violence": False, "Privacy": True}


def test_labels_are_texts_lists_and_true_keys():
    row = {"subset": "math", "tags": ["a", "b", "a"], "harm": HARM, "year": 2024, "none": None}
    assert labels_of(row, ["subset"], "x") == ["math"]
    assert labels_of(row, ["tags", "harm", "none", "year"], "x") == ["a", "b", "Drugs", "Privacy", "2024"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"other": 1}, "x: no column 'subset' for `subset`; it has other"),
        ({"subset": {"a": 1}}, "x: subset is an object with other values than true and false"),
        ({"subset": True}, "x: subset holds 'True'; `subset` reads texts and numbers"),
        ({"subset": [["a"]]}, "x: subset holds"),
    ],
)
def test_a_column_that_names_no_subset_is_refused(row: dict, sentence: str):
    with pytest.raises(UserError) as error:
        labels_of(row, ["subset"], "x")
    assert str(error.value).startswith(sentence)


def test_lengths_within_a_tenth_are_alike():
    classes = length_classes(np.array([[100, 90], [100, 89], [10, 12], [5, 5]]))
    assert [LENGTHS.index(one) for one in classes] == [1, 0, 2, 1]


def test_every_subset_has_its_share_and_its_prompts():
    """Of 12 comparisons of 6 prompts, the first 8 in `a`, the last 6 in `b`: 2 are in both, 0 in none."""
    gaps = np.array([1, 1, 1, 0, -1, 1, 1, 1, -1, -1, -1, -1], float)
    rewards = {"after": np.stack([gaps, np.zeros(12)], 1)}
    labels = [["a"]] * 6 + [["a", "b"]] * 2 + [["b"]] * 4
    tokens = np.tile([20, 10], (12, 1))
    table = accuracy_by_subset(rewards, np.arange(12) // 2, tokens, labels).set_index(["kind", "subset"])
    assert table.loc[("all", "all"), "accuracy"] == pytest.approx((6 + 0.5) / 12)
    assert table.loc[("subset", "a"), ["accuracy", "pairs", "prompts"]].tolist() == [6.5 / 8, 8, 4]
    assert table.loc[("subset", "b"), ["accuracy", "pairs", "prompts"]].tolist() == [pytest.approx(2 / 6), 6, 3]
    assert np.isnan(table.loc[("subset", "b"), "low"]), "three prompts give no interval"
    assert ("length", "chosen longer") in table.index and ("length", "chosen shorter") not in table.index
    low, mean, high = table.loc[("all", "all"), ["low", "accuracy", "high"]]
    assert 0 <= low < mean < high <= 1


def test_a_subset_that_is_all_right_has_an_interval_with_a_width():
    """A bootstrap of 8 right of 8 is [1, 1]; Wilson's lower end is 8 / (8 + 1.96^2) = 0.6756."""
    rewards = {"after": np.tile([1.0, 0.0], (8, 1))}
    table = accuracy_by_subset(rewards, np.arange(8), np.tile([2, 1], (8, 1)), [[]] * 8)
    assert table["low"].tolist() == pytest.approx([0.6756] * 2, abs=1e-4) and (table["high"] <= 1).all()


def test_comparisons_without_a_label_are_counted_as_such():
    rewards = {"after": np.tile([1.0, 0.0], (3, 1))}
    table = accuracy_by_subset(rewards, np.arange(3), np.tile([2, 1], (3, 1)), [["a"], [], []])
    assert dict(zip(table["subset"], table["pairs"], strict=True)) == {"all": 3, "a": 1, "no label": 2, LENGTHS[0]: 3}
