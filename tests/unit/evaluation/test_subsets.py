"""Accuracy by subset: what belongs to one, what is counted, and rows that cannot be read."""

import numpy as np
import pytest

from prefdag.data.subset_labels import check_sections, labels_of
from prefdag.errors import UserError
from prefdag.evaluation.subsets import (
    LENGTHS,
    OVERALL,
    accuracy_by_section,
    accuracy_by_subset,
    length_classes,
)

HARM = {"Drugs": True, "Violence": False, "Privacy": True}


def test_labels_are_texts_lists_and_true_keys():
    row = {"subset": "math", "tags": ["a", "b", "a"], "harm": HARM, "year": 2024, "none": None}
    assert labels_of(row, ["subset"], "x") == ["math"]
    assert labels_of(row, ["tags", "harm", "none"], "x") == ["a", "b", "Drugs", "Privacy"]
    assert labels_of(row, ["year"], "x") == ["2024"]


def test_bare_numbers_of_several_columns_name_their_column():
    """0 of `order` and 0 of `worker` are two subsets; with one column the number alone is the label."""
    row = {"by": "ours", "order": "0", "worker": [0, 1.5], "version": "v2"}
    assert labels_of(row, [*row], "x") == ["ours", "order 0", "worker 0", "worker 1.5", "v2"]
    assert labels_of(row, ["worker"], "x") == ["0", "1.5"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"other": 1}, "x: no column 'subset'; `subset` may name other"),
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


# Subset: comparisons, of which ranked right. Chat 4/6; of math alone 6/8, of code alone 1/2.
SIZES = {"easy": (4, 3), "hard": (2, 1), "math": (8, 6), "code": (2, 1)}
LABELS = [[name] for name, (size, _) in SIZES.items() for _ in range(size)]
RIGHT = np.array([k < right for size, right in SIZES.values() for k in range(size)])
REWARDS = {"before": np.zeros((16, 2)), "after": np.stack([RIGHT, ~RIGHT], 1).astype(float)}
POOLED = {"chat": ["easy", "hard"], "reasoning": ["math", "code"]}
WEIGHTED = {"chat": ["easy", "hard"], "reasoning": {"math": 5, "code": 5}}


@pytest.mark.parametrize(
    ("sections", "reasoning"), [(POOLED, 7 / 10), (WEIGHTED, (6 / 8 + 1 / 2) / 2)], ids=["pooled", "weighted"]
)
def test_sections_are_those_of_reward_bench(sections: dict, reasoning: float):
    """Of a section: the mean of its subsets' accuracies by their sizes, or by stated weights; then the plain mean."""
    table = accuracy_by_section(REWARDS, np.arange(16), LABELS, sections)
    assert table["subset"].tolist() == [name for name in (OVERALL, *sections) for _ in REWARDS]
    after = table[table["reward"] == "after"].set_index("subset")
    assert after["kind"].tolist() == ["overall", "section", "section"]
    assert after["accuracy"].tolist() == pytest.approx([(4 / 6 + reasoning) / 2, 4 / 6, reasoning])
    assert after["pairs"].tolist() == after["prompts"].tolist() == [16, 6, 10]
    assert (after["low"] < after["accuracy"]).all() and (after["accuracy"] < after["high"]).all()
    tied = table[table["reward"] == "before"]
    assert (tied["accuracy"] == 0.5).all() and (tied["low"] < 0.5).all() and (tied["high"] > 0.5).all()


def test_the_interval_of_a_mean_of_sections_is_narrower_than_theirs_and_resamples_prompts():
    """Two sections of 400 comparisons, half right: a section's deviation is sqrt(1/4/400) = 0.025, of the mean 0.0177.

    With the 400 comparisons of 40 prompts, ten alike each, they are sqrt(10) times as large.
    """
    right = np.tile(np.repeat([1.0, 0.0], 10), 40)
    rewards = {"after": np.stack([right, 1 - right], 1)}
    labels = [["a"]] * 400 + [["b"]] * 400
    widths = {}
    for name, prompts in (("each", np.arange(800)), ("ten", np.arange(800) // 10)):
        table = accuracy_by_section(rewards, prompts, labels, {"first": ["a"], "second": ["b"]})
        widths[name] = (table["high"] - table["low"]).to_numpy() / (2 * 1.96)
    assert widths["each"] == pytest.approx([0.0177, 0.025, 0.025], rel=0.1)
    assert widths["ten"] == pytest.approx(np.sqrt(10) * widths["each"], rel=0.1)


def test_a_comparison_in_two_subsets_of_a_section_counts_once_and_few_prompts_have_no_interval():
    labels = [["a", "b"], ["a"], ["b"], ["c"]]
    rewards = {"after": np.array([[1, 0], [0, 1], [0, 1], [1, 0]], float)}
    table = accuracy_by_section(rewards, np.arange(4), labels, {"ab": ["a", "b"], "c": ["c"]}).set_index("subset")
    assert table["accuracy"].tolist() == pytest.approx([(1 / 3 + 1) / 2, 1 / 3, 1])
    assert table["pairs"].tolist() == [4, 3, 1] and table[["low", "high"]].isna().all(axis=None)


def test_sections_that_are_all_right_have_an_interval_with_a_width():
    """Wilson's lower end of 8 of 8 is 0.6756, of 16 of 16 is 0.8064."""
    rewards = {"after": np.tile([1.0, 0.0], (24, 1))}
    labels = [["a"]] * 8 + [["b"]] * 16
    table = accuracy_by_section(rewards, np.arange(24), labels, {"a": ["a"], "b": ["b"]})
    assert table["low"].tolist() == pytest.approx([(0.6756 + 0.8064) / 2, 0.6756, 0.8064], abs=1e-4)


def test_a_resample_without_a_section_does_not_count():
    """Of 1,000 resamples of 405 prompts some 7 have none of the 5 prompts of the small section."""
    right = np.tile([1.0, 0.0], 203)[:405]
    rewards = {"after": np.stack([right, 1 - right], 1)}
    labels = [["large"]] * 400 + [["small"]] * 5
    table = accuracy_by_section(rewards, np.arange(405), labels, {"large": ["large"], "small": ["small"]})
    assert table[["low", "high"]].notna().all(axis=None)


def test_sections_are_compared_with_the_subsets_that_there_are():
    where = "evaluate_reward.bench"
    assert check_sections(POOLED, LABELS, where) is None and check_sections({}, LABELS, where) is None
    sentence = check_sections({"chat": ["easy", "hard"]}, [*LABELS, []], where)
    assert sentence == (
        "evaluate_reward.bench.sections: no section has code (2), math (8), no label (1); "
        "the mean of sections leaves these comparisons out"
    )
    with pytest.raises(UserError) as error:
        check_sections({"chat": ["easy", "esay"]}, LABELS, where)
    assert str(error.value) == (
        "evaluate_reward.bench.sections.chat: no comparison is of the subset 'esay'; "
        "they have code, easy, hard, math: correct the name, or leave it out"
    )
