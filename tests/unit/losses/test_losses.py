"""A golden value for every loss of the registry: arithmetic that a reader can redo, on four small examples."""

import math
from math import exp, log
from typing import Any

import pytest
import torch

from comparisons import comparisons, measured, tiny
from prefdag.config.objectives import OBJECTIVES, objective
from prefdag.errors import UserError
from prefdag.losses.batchwise import selected
from prefdag.losses.registry import loss_of
from prefdag.models.logprobs import logprobs, margin
from prefdag.models.packing import pack
from prefdag.testing.fixtures import of_lists, of_sums
from registry import Example, named, pair


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


CHOSEN, REJECTED = [double([-4, -6])], [double([-1, -2, -4, -8])]
CHOSEN_REFERENCE, REJECTED_REFERENCE = [double([-5, -7])], [double([-2, -2, -3, -7])]

# S_w = -10 of two tokens, S_l = -15 of four; d_w = 2, tokens +1 +1; d_l = -1, tokens +1 0 -1 -1; so D = 3. Averages:
# A_w = -5, A_l = -3.75, d_w / n_w = 1, d_l / n_l = -1/4. WPO's means are -1/2 each; TDPO's K_w = 1/2, K_l = 3/2.
LECTURE = Example(
    of_lists(CHOSEN, REJECTED),
    {
        "reference": of_lists(CHOSEN_REFERENCE, REJECTED_REFERENCE),
        "scores": double([[3, 1]]),
        "collision": double([-3.5, -5.5, -0.5, -1.5, -3.5, -7.5]),
        "divergence": double([0.2, 0.3, 0.1, 0.4, 0.4, 0.6]),
    },
)
# Policy and reference exchanged: d_w = -2, d_l = 1, D = -3.
EXCHANGED = Example(LECTURE.inputs["reference"], {"reference": LECTURE.policy})
# The lecture's pair and one of single tokens: S_w = R_w = -3, S_l = R_l = -7. S_w - S_l is 5 and 4, R_w - R_l 2 and 4.
TWO = Example(
    of_lists([*CHOSEN, double([-3])], [*REJECTED, double([-7])]),
    {
        "reference": of_lists([*CHOSEN_REFERENCE, double([-3])], [*REJECTED_REFERENCE, double([-7])]),
        "noise": double([0.5, 0.5]),
        "state": {"mean": 1.0, "std": 1.0},
    },
)
# The lecture's responses by themselves, the first desirable: d = 2 and -1.
SINGLES = Example(
    of_sums(double([[-10], [-15]]), torch.tensor([[2], [4]])),
    {
        "reference": of_sums(double([[-12], [-14]]), torch.tensor([[2], [4]])),
        "labels": torch.tensor([True, False]),
        "mismatched": double([0.5, 1.5]),
        "state": {"mean": 0.2, "count": 2.0},
    },
)
# d = 2, -1 and 0; scores 3, 1, 0.
THREE = Example(
    of_sums(double([[-10, -15, -9]]), torch.tensor([[2, 4, 1]])),
    {"reference": of_sums(double([[-12, -14, -9]]), torch.tensor([[2, 4, 1]])), "scores": double([[3, 1, 0]])},
)


def s(x: float) -> float:
    return 1 / (1 + exp(-x))


def sp(x: float) -> float:
    """softplus, -log s(-x)."""
    return log(1 + exp(x))


Q, LABELS = s(0.3), [exp(r) / (exp(1.75) + exp(0.5) + 1) for r in (1.75, 0.5, 0)]  # softmax((3 + 1/2, 1, 0) / 2)
NORMALISER = log(exp(0.2) + exp(-0.1) + 1)  # of 0.1 d
ODDS = [exp(-5) / (1 - exp(-5)), exp(-3.75) / (1 - exp(-3.75))]


def golden(example: Example, values: list[float], **row: Any) -> Any:
    return pytest.param(row, example, values, id=f"{named(row)}-{len(values)}")


GOLDEN = [
    golden(LECTURE, [sp(-0.3)], method="dpo", beta=0.1),
    golden(EXCHANGED, [sp(0.3)], method="dpo", beta=0.1),
    golden(LECTURE, [0.8 * sp(-0.3) + 0.2 * sp(0.3)], method="cdpo", beta=0.1, label_smoothing=0.2),
    golden(LECTURE, [(0.8 * sp(-0.3) - 0.2 * sp(0.3)) / 0.6], method="robust", beta=0.1, label_smoothing=0.2),
    golden(LECTURE, [sp(-(1 + 0.25))], method="dpo_norm", beta=1),
    golden(LECTURE, [(3 - 5) ** 2], method="ipo", beta=0.1, logprob="summed"),
    golden(LECTURE, [(1.25 - 5) ** 2], method="ipo", beta=0.1, logprob="averaged"),
    golden(LECTURE, [1 - 0.3], method="hinge", beta=0.1),
    golden(LECTURE, [sp(log(2) - 1.5)], method="odpo", beta=0.5, alpha=1),
    golden(LECTURE, [(3 - 2) ** 2], method="rebel", eta=1),
    golden(
        LECTURE, [Q * log(Q / 0.75) + (1 - Q) * log((1 - Q) / 0.25)], method="exo_pair", beta=0.1, label_smoothing=0.25
    ),
    golden(LECTURE, [Q * log(Q) + (1 - Q) * (log(1 - Q) + 10)], method="exo_pair", beta=0.1, target="authors"),
    golden(LECTURE, [sp(-0.3) * (1 - s(0.6)) + exp(-0.3) * s(0.6)], method="discopop", beta=0.1, tau=0.5),
    golden(LECTURE, [sp(-0.1 * (-exp(-2) + exp(1)))], method="f_dpo", beta=0.1, divergence="forward_kl"),
    golden(LECTURE, [sp(-0.1 * log(s(2) / s(-1)))], method="f_dpo", beta=0.1, divergence="jensen_shannon"),
    golden(LECTURE, [sp(-0.1 * 2 * (exp(0.5) - exp(-1)))], method="f_dpo", beta=0.1, divergence="alpha"),
    golden(LECTURE, [-0.3], method="log_ratio", beta=0.1),
    golden(LECTURE, [sp(-3) + ((2 - 2) ** 2 + (-1 + 2) ** 2) / 2], method="caldpo", beta=0.25),
    golden(LECTURE, [((2 - 2) ** 2 + (-1 + 2) ** 2) / 2], method="sppo_hard", beta=0.25),
    golden(LECTURE, [sp(-0.3)], method="dpop", beta=0.1, lam=0.5),
    golden(EXCHANGED, [sp(-0.1 * (-3 - 0.5 * 2))], method="dpop", beta=0.1, lam=0.5),
    golden(TWO, [2 * sp(-0.3) + 0.5 * 5, 2 * log(2) + 0.5 * 3], method="rpo", beta=0.1, w_dpo=2, w_nll=0.5),
    golden(TWO, [sp(-0.3) + 10 / 1.5, log(2) + 3 / 1.5], method="rpo", beta=0.1, nll="per_token"),
    golden(LECTURE, [sp(-0.6) + 5], method="rpo", beta=0.2),
    golden(LECTURE, [sp(-0.2) + sp(0.2) / 2 + sp(-0.1) / 2], method="nca_pair", beta=0.1),
    golden(LECTURE, [sp(-0.2) + sp(-0.1)], method="biased_nca", beta=0.1),
    golden(LECTURE, [1 - s(0.2) + s(-0.1)], method="apo_zero", beta=0.1),
    golden(LECTURE, [s(0.2) + 1 - s(0.3)], method="apo_down", beta=0.1),
    # 5 and 4 against 4 and 2, sorted: the lecture's 5 against 4, the other's 4 against 2.
    golden(TWO, [sp(-0.1 * (5 - 4)), sp(-0.1 * (4 - 2))], method="aot", beta=0.1),
    # d_w 2 and 0 against d_l -1 and 0, sorted: 2 against 0 and 0 against -1.
    golden(TWO, [sp(-0.1 * (2 - 0)), sp(-0.1 * (0 + 1))], method="aot_unpaired", beta=0.1),
    # D = 3 and 0, mean 1.5; the running mean (1 + 1.5) / 2 = 1.25; so b = 0.1 (1 + 0.5 (1.5 - 1.25)) = 0.1125.
    golden(TWO, [sp(-0.1125 * 3), log(2)], method="beta_dpo", a=0.5, mode_weight=0, momentum=0.5),
    # d_l = 1 + 0 + (-1 - 1) / 2 = 0: the chosen response has two tokens.
    golden(LECTURE, [sp(-0.1 * (2 - 0))], method="ld_dpo", beta=0.1, alpha=0.5),
    golden(LECTURE, [exp(-0.5 - 0.5) * sp(-0.3)], method="wpo", beta=0.1),
    golden(LECTURE, [sp(-0.1 * (3 - (1.5 - 0.5)))], method="tdpo1", beta=0.1),
    golden(LECTURE, [sp(-0.1 * (3 - 0.5 * (1.5 - 0.5)))], method="tdpo2", beta=0.1, alpha=0.5),
    golden(LECTURE, [sp(-(2 * (-5 + 3.75) - 0.5))], method="simpo", beta=2, gamma_beta_ratio=0.25),
    golden(LECTURE, [1 - (2 * (-5 + 3.75) - 0.5)], method="simpo", beta=2, gamma_beta_ratio=0.25, loss="hinge"),
    golden(LECTURE, [sp(0.5 - 2 * (exp(1.875) - exp(2.5)))], method="alphapo", beta=1, alpha=0.5, gamma=0.5),
    golden(LECTURE, [5 + 0.5 * log(1 + ODDS[1] / ODDS[0])], method="orpo", lam=0.5),
    golden(TWO, [sp(-0.5) + 0.5 * 10 / 1.5, sp(-0.4) + 0.5 * 3 / 1.5], method="cpo", beta=0.1, cpo_alpha=0.5),
    golden(LECTURE, [6 - 5 + 0.1 * 5], method="slic", delta=6, lam=0.1),
    golden(LECTURE, [10], method="preferred_ft"),
    golden(LECTURE, [10 - 0.5 * 15], method="unlikelihood", alpha=0.5),
    golden(LECTURE, [10 - 0.5 * sum(log(1 - exp(-t)) for t in (1, 2, 4, 8))], method="unlikelihood_tokens", alpha=0.5),
    # G_w = -4 - 6 / 2 = -7, G_l = -1 - 2 / 2 - 4 / 4 - 8 / 8 = -4.
    golden(LECTURE, [sp(-0.1 * (-7 + 0.5 * 4))], method="cpl", alpha=0.1, bias=0.5, discount=0.5),
    # G_w = 1 + 1 / 2, G_l = 1 + 0 - 1 / 4 - 1 / 8 = 0.625.
    golden(LECTURE, [sp(-0.2 * (1.5 - 0.8 * 0.625))], method="cpl_ref", alpha=0.2, bias=0.8, discount=0.5),
    # z = (0.5 + 1.5) / 2 = 1.
    golden(SINGLES, [1 - s(0.1 * (2 - 1)), 2 * (1 - s(0.1 * (1 + 1)))], method="kto", beta=0.1, lambda_u=2),
    # delta = (0.2 + 0.2 + 0.2 - 0.1) / 4 = 0.125: two earlier rewards of mean 0.2, and these.
    golden(SINGLES, [sp(-(0.2 - 0.125)), sp(-(0.125 + 0.1))], method="bco", beta=0.1),
    golden(SINGLES, [1 - s(0.2), s(-0.1)], method="apo_zero_unpaired", beta=0.1),
    golden(THREE, [NORMALISER - 0.2 + log(exp(-0.1) + 1) + 0.1], method="plackett_luce", beta=0.1),
    golden(THREE, [NORMALISER - 0.2], method="multi_negative", beta=0.1),
    golden(THREE, [(sp(-0.3) + sp(-0.2) + sp(0.1)) / 3], method="all_pairs", beta=0.1),
    golden(
        THREE,
        [LABELS[0] * (NORMALISER - 0.2) + LABELS[1] * (NORMALISER + 0.1) + LABELS[2] * NORMALISER],
        method="infonca_k",
        beta=0.1,
        alpha=2,
        first_bonus=0.5,
    ),
    golden(
        THREE,
        [LABELS[0] * sp(-0.2) + LABELS[1] * sp(0.1) + LABELS[2] * sp(0) + (sp(0.2) + sp(-0.1) + sp(0)) / 3],
        method="nca_k",
        beta=0.1,
        alpha=2,
        first_bonus=0.5,
    ),
]


@pytest.mark.parametrize(("row", "example", "values"), GOLDEN)
def test_golden_values(row: dict[str, Any], example: Example, values: list[float]) -> None:
    assert example.loss(**row).tolist() == pytest.approx(values, abs=1e-12)


def test_every_loss_has_a_golden_value() -> None:
    """A loss that is added to the registry is added to `GOLDEN`."""
    assert {case.values[0]["method"] for case in GOLDEN} == set(OBJECTIVES)


def test_the_lecture_example_in_figures() -> None:
    """beta 0.1, log-ratios +2 and -1: -log sigmoid(0.3) = 0.554355; exchanged 0.3 more."""
    assert LECTURE.loss(method="dpo", beta=0.1).item() == pytest.approx(0.554355, abs=1e-6)
    assert EXCHANGED.loss(method="dpo", beta=0.1).item() == pytest.approx(0.854355, abs=1e-6)


def test_ipo_asks_which_of_its_two_formulas() -> None:
    with pytest.raises(ValueError, match="row.logprob: missing"):
        objective({"method": "ipo", "beta": 0.1}, "suite.yaml", "row")


def test_an_option_is_read_or_refused() -> None:
    """The alpha of the alpha divergence with another one; a label smoothing under the authors' target or a hinge."""
    for row in (
        {"method": "f_dpo", "divergence": "forward_kl", "alpha": 0.3},
        {"method": "exo_pair", "target": "authors", "label_smoothing": 0.1},
        {"method": "simpo", "loss": "hinge", "label_smoothing": 0.1},
    ):
        with pytest.raises(UserError, match=r"row\.\w+: read with \w+: \w+ alone; leave it out"):
            objective(row, "suite.yaml", "row")


def test_odpo_of_a_tie_and_of_a_pair_the_wrong_way_round() -> None:
    """No loss and no gradient; a mistake."""
    policy = pair(-10, -15)
    tied = Example(policy, {**LECTURE.inputs, "scores": double([[2, 2]])}).loss(method="odpo")
    tied.sum().backward()
    assert tied.tolist() == [0] and policy.tokens.grad is not None and policy.tokens.grad.abs().max() == 0
    with pytest.raises(UserError, match="lower score than the rejected one; leave such pairs out"):
        LECTURE.with_(scores=double([[1, 3]])).loss(method="odpo")


def test_losses_that_carry_a_state() -> None:
    """BCO's mean and count; beta-DPO's running moments of D = 3 and 0, deviation 3 / sqrt(2), at first the step's own.

    What was given is left as it was.
    """
    bco, beta_dpo = (objective({"method": method}, "tests", "row") for method in ("bco", "beta_dpo"))
    inputs = {name: SINGLES.inputs[name] for name in bco.reads}
    _, after = loss_of(bco)(SINGLES.policy, **inputs)
    assert after == pytest.approx({"mean": 0.125, "count": 4}) and inputs["state"] == {"mean": 0.2, "count": 2}
    inputs = {name: TWO.inputs[name] for name in beta_dpo.reads}
    _, after = loss_of(beta_dpo)(TWO.policy, **inputs)
    deviation = 3 / math.sqrt(2)
    assert after == pytest.approx({"mean": 0.9 * 1 + 0.1 * 1.5, "std": 0.9 * 1 + 0.1 * deviation})
    _, first = loss_of(beta_dpo)(TWO.policy, **{**inputs, "state": {}})
    assert first == pytest.approx({"mean": 1.5, "std": deviation}) and inputs["state"] == {"mean": 1, "std": 1}


def test_beta_dpo_leaves_out_what_lies_far_from_the_mean() -> None:
    """Of four gaps -1, 0, 1 and 50, mean 0 and deviation 1, three are kept: never the 50, whose weight is e^-1250."""
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        noise = torch.rand(4, generator=random, dtype=torch.float64)
        mask = selected(double([-1, 0, 1, 50]), noise, {"mean": 0.0, "std": 1.0}, mode_weight=0.2)
        assert mask.tolist() == [1, 1, 1, 0]


def test_beta_dpo_keeps_pairs_by_the_density_of_their_gap() -> None:
    """One of two gaps 0 and 1.5: the first with probability 1 / (1 + e^-1.125) = 0.7549; of 4,000 draws within 0.02."""
    noise = torch.rand(4_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = {"mean": 0.0, "std": 1.0}
    first = sum(selected(double([0, 1.5]), each, moments, mode_weight=0.5)[0].item() for each in noise)
    assert first / 4_000 == pytest.approx(0.7549, abs=0.02)


def test_preferred_ft_is_the_chosen_responses_nll() -> None:
    """Its sum over a batch is what SFT minimises on the chosen responses, before the division by their tokens."""
    model, rows = tiny(), comparisons(5, 2)
    alone = [type(one)(one.prompt, one.responses[:1]) for one in rows]
    preferred = Example(logprobs(model, pack(rows))).loss(method="preferred_ft")
    assert preferred.sum().item() == pytest.approx(-logprobs(model, pack(alone)).tokens.sum().item(), abs=1e-10)


def test_dpos_gradient_is_the_papers() -> None:
    """Rafailov et al. 2023, section 4: -beta sigmoid(-beta D) (grad log pi(chosen) - grad log pi(rejected)), for every
    parameter of a model.
    """
    beta, model, rows = 0.3, tiny("gpt2"), comparisons(4, 2, seed=4)
    for one in rows:
        segments = pack([one])
        with torch.no_grad():
            reference = logprobs(tiny(seed=1), segments)
        loss = loss_of(objective({"method": "dpo", "beta": beta}, "tests", "row"))
        direct = measured(model, lambda: {"loss": loss(logprobs(model, segments), reference=reference).sum()})  # noqa: B023
        gaps = measured(model, lambda: {"loss": margin(logprobs(model, segments).total).sum()})  # noqa: B023
        with torch.no_grad():
            logit = beta * margin((logprobs(model, segments) - reference).total)
        for name in [name for name in direct if name != "loss"]:
            assert torch.allclose(direct[name], -beta * torch.sigmoid(-logit) * gaps[name], rtol=0, atol=1e-10)
