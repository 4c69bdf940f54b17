"""Metrics of pairs by hand: a tie counts a half, and a probe counts the chosen responses that fell."""

from pathlib import Path

import pytest
import torch

from comparisons import comparisons, stored, tiny
from prefdag.models.logprobs import LogProbs
from prefdag.training.preference_metrics import Displacement, preference_metrics


def pairs(*values: float) -> LogProbs:
    """Pairs of responses of one token each, chosen first."""
    return LogProbs(torch.tensor(values), torch.arange(len(values)), (len(values) // 2, 2))


def test_accuracy_counts_a_tie_as_a_half() -> None:
    metrics = preference_metrics(pairs(-1, -2, -2, -1, -3, -3), pairs(-1, -1, -1, -1, -1, -1), None)
    assert metrics["accuracy"].tolist() == [1, 0, 0.5]
    assert metrics["margin"].tolist() == [1, -1, 0]
    assert metrics["chosen_logratio"].tolist() == [0, -1, -2]
    assert metrics["rejected_logratio"].tolist() == [-1, 0, -2]


def test_a_probe_counts_the_chosen_responses_that_fell(tmp_path: Path) -> None:
    model, held_out = tiny(), stored(tmp_path / "held_out", comparisons(6, 2, seed=1))
    probe = Displacement(model, held_out, 4096)
    start = probe()
    assert start["held_out_chosen_logratio"] == start["held_out_margin"] == start["held_out_chosen_fell"] == 0
    assert start["held_out_accuracy"] == 0.5
    with torch.no_grad():  # sharper logits: untrained responses are unlikely, and become less likely
        model.get_output_embeddings().weight *= 20
    moved = probe()
    assert moved["held_out_chosen_logratio"] < 0
    assert moved["held_out_chosen_fell"] > 0.5
    gap = moved["held_out_chosen_logratio"] - moved["held_out_rejected_logratio"]
    assert moved["held_out_margin"] == pytest.approx(gap, rel=1e-4)


def test_a_labelled_response_is_right_if_its_log_ratio_has_the_labels_sign() -> None:
    policy = LogProbs(torch.tensor([-1.0, -3.0, -1.0, -3.0]), torch.arange(4), (4, 1))
    reference = LogProbs(torch.full((4,), -2.0), torch.arange(4), (4, 1))
    metrics = preference_metrics(policy, reference, torch.tensor([True, True, False, False]))
    assert metrics["accuracy"].tolist() == [1, 0, 0, 1]
