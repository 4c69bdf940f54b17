"""What a suite asks of single labelled responses is refused when it is read, in one sentence."""

import re
from typing import Any

import pytest

from prefdag.config.suite import resolve
from prefdag.errors import UserError

SUITE: dict[str, Any] = {
    "name": "singles",
    "model": {"source": "model"},
    "data": {"source": "rows.jsonl"},
    "prepare": {"adapter": "labelled"},
    "score": {"reward": "vader"},
    "runs": [{"name": "kto", "method": "kto"}],
}
MIXED = {
    "source": "mixed",
    "sources": [{"source": "a.jsonl", "weight": 1}, {"source": "b.jsonl", "weight": 1, "adapter": "pairs"}],
}


@pytest.mark.parametrize("method", ["kto", "bco", "apo_zero_unpaired"])
def test_losses_of_single_responses_take_them(method: str):
    assert resolve({**SUITE, "runs": [{"name": "one", "method": method}]}, "suite.yaml").runs[0].name == "one"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"runs": [{"name": "dpo", "method": "dpo", "beta": 0.1}]},
            "runs.dpo.method: dpo compares responses, and rows of the adapter `labelled` hold one labelled response",
        ),
        (
            {"runs": [{"name": "pl", "method": "plackett_luce"}]},
            "runs.pl.method: plackett_luce compares responses, and rows of the adapter `labelled` hold one labelled",
        ),
        (
            {"runs": [{"name": "kto", "method": "kto", "dataset": "rankings"}]},
            "runs.kto.dataset: rows of the adapter `labelled` hold one labelled response; sample rankings by",
        ),
        ({"reward": {}}, "reward: a reward model compares responses, and rows of the adapter `labelled` hold one"),
        ({"score": {}}, "reward: a reward model compares responses, and rows of the adapter `labelled` hold one"),
        ({"generate": {"chosen": True}}, "generate.chosen: rows of the adapter `labelled` hold one labelled response"),
        ({"judge": {"against": "chosen"}}, "judge.against: rows of the adapter `labelled` hold one labelled response"),
        (
            {"data": MIXED},
            "data.sources: rows of the adapter `labelled` hold one labelled response each, those of `pairs`",
        ),
    ],
)
def test_what_needs_pairs_is_refused(changes: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=re.escape(f"suite.yaml: {sentence}")) as error:
        resolve({**SUITE, **changes}, "suite.yaml")
    assert "\n" not in str(error.value)


def test_sampled_pairs_and_on_policy_rows_need_no_pairs():
    """Their prompts are all that they take from the rows."""
    runs = [{"name": "dpo", "method": "dpo", "beta": 0.1, "online": {"labels": "soft"}}]
    on_policy = {"online": {"reward": "ground_truth"}, "runs": runs}
    assert resolve({**SUITE, **on_policy}, "suite.yaml").runs[0].online
    dpo = [{"name": "dpo", "method": "dpo", "beta": 0.1}]
    sampled = {"pairs": {"reward": "vader"}, "reward": {}, "runs": dpo}
    assert resolve({**SUITE, **sampled}, "suite.yaml").runs[0].name == "dpo"
    rounds = [{**dpo[0], "pairs": {"law": "max_min", "reward": "vader"}}]
    assert resolve({**SUITE, "runs": rounds}, "suite.yaml").runs[0].rounds
