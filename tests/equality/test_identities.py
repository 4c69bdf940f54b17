"""Losses against each other: what one is where its options or its inputs are another's, and what must not matter."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from prefdag.config.loss_source import INPUTS
from prefdag.config.objectives import OBJECTIVES
from prefdag.losses import registry
from prefdag.losses.registry import LOSSES
from prefdag.models.logprobs import LogProbs
from prefdag.reporting.tables import title
from registry import LISTED, ROWS, Example, entry_of_row, example_for, first_tokens, named, random_example, shifted

every_row = pytest.mark.parametrize("row", ROWS, ids=named)
SCORES = {"scores": torch.tensor([[2000.0, 1000.0]] * 6, dtype=torch.float64)}


def zero(example: Example) -> LogProbs:
    return replace(example.policy, tokens=torch.zeros_like(example.policy.tokens))


def swapped(example: Example) -> Example:
    """Chosen and rejected exchanged."""
    both = example.policy, example.inputs["reference"]
    counts = example.policy.count.int().flatten().tolist()
    order = [place + 1 if place % 2 == 0 else place - 1 for place in range(len(counts))]

    def turned(of: LogProbs) -> LogProbs:
        parts = of.tokens.split(counts)
        lengths = torch.tensor([counts[place] for place in order])
        owner = torch.repeat_interleave(torch.arange(len(order)), lengths)
        return LogProbs(torch.cat([parts[place] for place in order]), owner, of.shape)

    policy, reference = map(turned, both)
    return Example(policy, {**example.inputs, "reference": reference})


def same(example: Example) -> Example:
    return example


def reference_free(example: Example) -> Example:
    return example.with_(reference=zero(example))


def no_divergence(example: Example) -> Example:
    return example.with_(divergence=torch.zeros_like(example.inputs["divergence"]))


# One loss, another, and the inputs under which they are the same.
SAME: list[tuple[dict[str, Any], dict[str, Any], Callable[[Example], Example]]] = [
    ({"method": "cdpo", "label_smoothing": 0}, {"method": "dpo"}, same),
    ({"method": "robust", "label_smoothing": 0}, {"method": "dpo"}, same),
    ({"method": "dpop", "beta": 0.1, "lam": 0}, {"method": "dpo"}, same),
    ({"method": "rpo", "w_nll": 0}, {"method": "dpo"}, same),
    ({"method": "odpo", "beta": 0.1, "alpha": 0}, {"method": "dpo"}, same),
    ({"method": "ld_dpo", "alpha": 1}, {"method": "dpo"}, same),
    ({"method": "tdpo1"}, {"method": "dpo"}, no_divergence),
    ({"method": "tdpo2"}, {"method": "dpo"}, no_divergence),
    ({"method": "tdpo2", "alpha": 0}, {"method": "dpo"}, same),
    ({"method": "tdpo2", "alpha": 1}, {"method": "tdpo1"}, same),
    ({"method": "beta_dpo", "a": 0, "mode_weight": 0}, {"method": "dpo"}, same),
    ({"method": "cpl_ref", "alpha": 0.1, "bias": 1}, {"method": "dpo"}, same),
    ({"method": "cpl", "alpha": 0.1, "bias": 1}, {"method": "dpo"}, reference_free),
    (
        {"method": "cpl", "alpha": 0.2, "bias": 0.3, "discount": 0.9},
        {"method": "cpl_ref", "bias": 0.3, "discount": 0.9},
        reference_free,
    ),
    ({"method": "cpo", "cpo_alpha": 0}, {"method": "dpo"}, reference_free),
    ({"method": "cpo", "cpo_alpha": 0, "loss": "hinge"}, {"method": "hinge"}, reference_free),
    ({"method": "slic"}, {"method": "cpo", "beta": 1, "cpo_alpha": 0.1, "loss": "hinge", "nll": "per_response"}, same),
    ({"method": "simpo", "beta": 5, "gamma_beta_ratio": 0}, {"method": "dpo_norm"}, reference_free),
    ({"method": "alphapo", "beta": 2, "alpha": 0, "gamma": 0.5}, {"method": "simpo"}, same),
    (
        {"method": "wpo", "beta": 0.1},
        {"method": "dpo"},
        lambda example: example.with_(collision=example.policy.tokens.detach() - 1),
    ),
    ({"method": "unlikelihood", "alpha": 0}, {"method": "preferred_ft"}, same),
    ({"method": "unlikelihood_tokens", "alpha": 0}, {"method": "preferred_ft"}, same),
    # 1/(2 beta) = 500 = 0.5 (r_w - r_l).
    (
        {"method": "rebel", "eta": 0.5},
        {"method": "ipo", "beta": 0.001, "logprob": "summed"},
        lambda example: example.with_(**SCORES),
    ),
    ({"method": "nca_k"}, {"method": "nca_pair"}, lambda example: example.with_(**SCORES)),
    ({"method": "infonca_k", "beta": 0.1}, {"method": "dpo"}, lambda example: example.with_(**SCORES)),
    ({"method": "plackett_luce"}, {"method": "dpo"}, same),
    ({"method": "multi_negative"}, {"method": "dpo"}, same),
    ({"method": "all_pairs"}, {"method": "dpo"}, same),
]


@pytest.mark.parametrize(
    ("row", "other", "inputs"), SAME, ids=lambda value: named(value) if isinstance(value, dict) else ""
)
def test_one_loss_is_another(row: dict[str, Any], other: dict[str, Any], inputs: Callable[[Example], Example]) -> None:
    example = inputs(random_example())
    assert torch.allclose(example.loss(**row), example.loss(**other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["aot", "aot_unpaired"])
def test_sorting_one_pair_leaves_dpo(method: str) -> None:
    example = random_example()
    one_by_one = torch.cat([example.of([at]).loss(method=method) for at in range(6)])
    assert torch.allclose(one_by_one, example.loss(method="dpo"), rtol=0, atol=1e-12)
    assert not torch.allclose(example.loss(method=method), example.loss(method="dpo"))


def test_cdpo_at_one_half_does_not_know_which_was_chosen() -> None:
    example = random_example()
    for smoothing in (0.5, 0.4):
        row = {"method": "cdpo", "label_smoothing": smoothing}
        assert torch.allclose(example.loss(**row), swapped(example).loss(**row), rtol=0, atol=1e-12) == (
            smoothing == 0.5
        )


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    """(1 - e) loss(pair) + e loss(pair flipped) = DPO of the pair."""
    example, row = random_example(), {"method": "robust", "label_smoothing": 0.2}
    noisy = 0.8 * example.loss(**row) + 0.2 * swapped(example).loss(**row)
    assert torch.allclose(noisy, example.loss(method="dpo"), rtol=0, atol=1e-12)


def test_sums_and_averages_are_the_same_of_single_tokens() -> None:
    single, several = random_example(longest=1), random_example()
    for example in (single, several):
        for one, other in (
            ({"method": "ipo", "logprob": "summed"}, {"method": "ipo", "logprob": "averaged"}),
            ({"method": "dpo_norm", "beta": 0.1}, {"method": "dpo"}),
            ({"method": "rpo", "nll": "per_token"}, {"method": "rpo"}),
        ):
            assert torch.allclose(example.loss(**one), example.loss(**other), rtol=1e-12) == (example is single)


def test_sums_of_losses() -> None:
    """Cal-DPO = SPPO + DPO of beta 1; ORPO = likelihood + odds; a pair's APO-zero and NCA = those of its responses."""
    example = random_example()
    calibrated = example.loss(method="sppo_hard", beta=0.1) + example.loss(method="dpo", beta=1)
    assert torch.allclose(example.loss(method="caldpo", beta=0.1), calibrated, rtol=0, atol=1e-12)
    odds = example.loss(method="orpo", nll="none") - example.policy.mean[:, 0]
    assert torch.allclose(example.loss(method="orpo"), odds, rtol=0, atol=1e-12)
    flat = [replace(of, shape=(12, 1)) for of in (example.policy, example.inputs["reference"])]
    alone = Example(flat[0], {"reference": flat[1], "labels": torch.arange(12) % 2 == 0, "mismatched": torch.zeros(12)})
    halves = alone.loss(method="apo_zero_unpaired")
    assert torch.allclose(halves.view(6, 2).sum(1), example.loss(method="apo_zero"), rtol=0, atol=1e-12)
    assert torch.allclose(alone.loss(method="kto"), halves, rtol=0, atol=1e-12)


def test_kto_takes_no_reference_point_below_zero() -> None:
    example = random_example(1)
    zero, below, above = (example.with_(mismatched=torch.full((6,), z)).loss(method="kto") for z in (0.0, -3.0, 3.0))
    assert torch.equal(zero, below) and not torch.allclose(zero, above)


def test_f_dpo_between_its_limits() -> None:
    """The alpha divergence is the reverse KL, DPO's, as alpha falls to 0, and the forward KL as it rises to 1."""
    example = random_example()
    for alpha, limit in (
        (1e-7, {"method": "dpo"}),
        (1 - 1e-9, {"method": "f_dpo", "divergence": "forward_kl"}),
    ):
        values = example.loss(method="f_dpo", divergence="alpha", alpha=alpha)
        assert torch.allclose(values, example.loss(**limit), rtol=0, atol=1e-5)
        assert not torch.allclose(
            example.loss(method="f_dpo", divergence="alpha"), example.loss(**limit), rtol=0, atol=1e-5
        )


@every_row
def test_the_first_step_is_what_the_entry_says(row: dict[str, Any]) -> None:
    """At policy = reference: log 2, (1 / (2 beta))^2, ...; nothing stated where that depends on the data or on K."""
    entry = entry_of_row(row)
    example = no_divergence(example_for(row))
    started = example.with_(reference=example.policy, mismatched=torch.zeros(6)).loss(**row)
    if entry.first_step:
        value = eval(entry.first_step, vars(math), entry.parameters())
        assert torch.allclose(started, torch.full_like(started, value), rtol=0, atol=1e-12)
    if named(row) in LISTED:
        assert bool(entry.first_step) == (row["method"] not in NOTHING_STATED)


NOTHING_STATED = {
    *("odpo", "rebel", "rpo", "wpo", "simpo", "alphapo", "orpo", "cpo", "slic", "preferred_ft", "unlikelihood"),
    *("unlikelihood_tokens", "cpl", "kto", "beta_dpo", "exo_pair", "plackett_luce", "multi_negative", "infonca_k"),
}


# Losses that read the policy in addition to its ratio to the reference.
NOT_OF_RATIOS = {"rpo", "wpo", "aot"}
# Losses that differences of sums alone decide: as much added to every response's sum changes nothing.
OF_DIFFERENCES = {
    *("dpo", "cdpo", "robust", "ipo-summed", "hinge", "odpo", "rebel", "exo_pair", "exo_pair-authors", "discopop"),
    *("log_ratio", "aot", "aot_unpaired", "beta_dpo", "ld_dpo", "tdpo1", "tdpo2", "bco"),
    *("plackett_luce", "multi_negative", "all_pairs", "infonca_k"),
}


@every_row
def test_as_much_added_to_policy_and_reference_changes_nothing(row: dict[str, Any]) -> None:
    example = example_for(row)
    added = -torch.linspace(0.1, 1, len(example.policy.tokens), dtype=torch.float64)
    moved = example.with_(shifted(example.policy, added), reference=shifted(example.inputs["reference"], added))
    unchanged = torch.allclose(moved.loss(**row), example.loss(**row), rtol=0, atol=1e-11)
    assert unchanged == ("reference" in entry_of_row(row).reads and row["method"] not in NOT_OF_RATIOS)


@every_row
def test_as_much_added_to_every_sum_leaves_what_reads_differences(row: dict[str, Any]) -> None:
    example = example_for(row)
    moved = example.with_(shifted(example.policy, -0.7 * first_tokens(example.policy)))
    unchanged = torch.allclose(moved.loss(**row), example.loss(**row), rtol=0, atol=1e-11)
    assert unchanged == (named(row) in OF_DIFFERENCES) or named(row) not in LISTED


@every_row
def test_the_order_of_comparisons_does_not_matter(row: dict[str, Any]) -> None:
    example, order = example_for(row), [3, 0, 5, 1, 4, 2]
    assert torch.allclose(example.of(order).loss(**row), example.loss(**row)[order], rtol=0, atol=1e-12)


@every_row
def test_scope_says_whether_comparisons_meet(row: dict[str, Any]) -> None:
    """Two micro-batches of three are one of six, or else the loss must see the whole step."""
    example = example_for(row)
    halves = torch.cat([example.of([0, 1, 2]).loss(**row), example.of([3, 4, 5]).loss(**row)])
    alone = torch.allclose(example.loss(**row), halves, rtol=0, atol=1e-12)
    assert alone == (entry_of_row(row).scope == "comparison")
    assert alone or not math.isclose(halves.mean().item(), example.loss(**row).mean().item(), abs_tol=1e-4)


def test_every_loss_is_in_the_proofs_and_has_a_printed_name() -> None:
    assert {row["method"] for row in ROWS} == set(OBJECTIVES) == set(LOSSES)
    titles = [title(method) for method in (*OBJECTIVES, "base", "sft")]
    assert all(titles) and len(set(titles)) == len(titles)


@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_function_takes_what_its_entry_states(method: str) -> None:
    """Inputs and options, no other; what is carried over steps or met in one is of scope "step"."""
    entry = OBJECTIVES[method]
    taken = set(inspect.signature(LOSSES[method]).parameters) - {"policy"}
    assert taken == entry.reads | set(entry.model_fields) - {"method"}
    assert entry.reads <= set(INPUTS)
    assert entry.scope == "step" or not entry.reads & {"state", "noise", "mismatched"}


def test_every_input_is_told() -> None:
    for name in INPUTS:
        assert f"\n{name} " in (registry.__doc__ or "")
