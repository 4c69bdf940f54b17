"""Which losses always raise the preferred response's log-prob and never the other's, and which do not, and why.

What is held without gradient (a reference point, a weight, a beta) is held here too: this is about the direction in
which a step moves the policy. A preferred response is never lowered and the other never raised, but where a table here
says so: of pairs chosen and rejected, of single responses the desirable and the undesirable, of several the first and
the last.
"""

from typing import Any

import pytest
import torch

from prefdag.config.objectives import OBJECTIVES
from registry import ROWS, entry_of_row, example_for, named

SMOOTHED = "with a label smoothing e the least loss is where the logit is log((1 - e) / e), not at infinity"
# Those of which that holds without their label smoothing.
UNLESS_SMOOTHED = {"aot", "aot_unpaired", "wpo", "simpo", "cpo"}
# Which sides others may move the other way, and why.
EXCEPT = {
    "cdpo": ("preferred other", SMOOTHED),
    "ipo": ("preferred other", "D is drawn to 1 / (2 beta), from above as well"),
    "rebel": ("preferred other", "D is drawn to the difference of the scores"),
    "exo_pair": ("preferred other", "q is drawn to 1 - e, of the authors' to e^10 times the other's"),
    "discopop": ("preferred other", "not monotone, nor convex: its authors found it so"),
    "caldpo": ("preferred other", "both rewards are drawn to plus and minus 1 / (2 beta)"),
    "sppo_hard": ("preferred other", "both log-ratios are drawn to plus and minus 1 / (2 beta)"),
    "nca_pair": ("preferred", "the chosen response's own reward is drawn to a finite value"),
    "apo_down": ("preferred", "made to lower both, the rejected further"),
    "infonca_k": ("preferred other", "the softmax of rewards is drawn to the softmax of scores"),
    "nca_k": ("preferred other", "every reward is drawn to the logit of K times its soft label"),
}


def moved(row: dict[str, Any]) -> set[str]:
    """The sides that some step moves the wrong way, of random batches near the reference and far from it."""
    wrong = set()
    for seed in range(12):
        example = example_for(row, num=16, seed=seed, spread=[0.3, 1, 4, 16][seed % 4])
        (slope,) = torch.autograd.grad(example.loss(**row).sum(), [example.policy.tokens])
        owner, size = example.policy.owner, example.policy.shape[1]
        if size == 1:
            preferred, other = example.inputs["labels"][owner], ~example.inputs["labels"][owner]
        else:
            preferred, other = owner % size == 0, owner % size == size - 1
        wrong |= {"preferred"} if (slope[preferred] > 1e-15).any() else set()
        wrong |= {"other"} if (slope[other] < -1e-15).any() else set()
    return wrong


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_step_moves_no_response_the_wrong_way_but_where_it_is_known(row: dict[str, Any]) -> None:
    sides, _ = EXCEPT.get(row["method"], ("", ""))
    if row["method"] in UNLESS_SMOOTHED and "label_smoothing" in row:
        assert moved(row) >= {"other"}, SMOOTHED
        row = {**row, "label_smoothing": 0}
    assert moved(row) == set(sides.split())


def test_the_tables_hold_losses_of_the_registry_once() -> None:
    tables = [*UNLESS_SMOOTHED, *EXCEPT]
    assert set(tables) <= set(OBJECTIVES) and len(tables) == len(set(tables))
    for method in UNLESS_SMOOTHED:
        assert any(row["method"] == method and entry_of_row(row).parameters().get("label_smoothing") for row in ROWS)
