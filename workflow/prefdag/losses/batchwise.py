"""Pairs against a reference: losses that compare the pairs of a step, so that they need the whole step at once."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prefdag.losses.decorator import loss
from prefdag.losses.functional import logistic
from prefdag.models.logprobs import LogProbs, margin
from prefdag.schema import Fraction, LabelSmoothing, NonNegative, Positive

SMALLEST_BETA = 1e-3


@loss(
    title="AOT",
    paper="Melnyk et al. 2024, arXiv 2406.05882",
    formula="cdpo(beta (sort(S_w - S_l) - sort(R_w - R_l)))",
    first_step="log(2)",
    scope="step",
    conventions="TRL sorts each device's micro-batch; here the whole step is sorted, so packing changes nothing.",
)
def aot(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, label_smoothing: LabelSmoothing = 0.0
) -> Tensor:
    """Alignment by optimal transport: the step's gaps, sorted, against the reference's, sorted."""
    return _quantiles(margin(policy.total), margin(reference.total), beta, label_smoothing)


@loss(
    title="AOT (unpaired)",
    paper="Melnyk et al. 2024, arXiv 2406.05882",
    formula="cdpo(beta (sort(d_w) - sort(d_l)))",
    first_step="log(2)",
    scope="step",
    conventions="TRL sorts each device's micro-batch; here the whole step is sorted, so packing changes nothing.",
)
def aot_unpaired(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, label_smoothing: LabelSmoothing = 0.0
) -> Tensor:
    """Alignment by optimal transport: the chosen responses' log-ratios, sorted, against the rejected ones', sorted."""
    ratio = (policy - reference).total
    return _quantiles(ratio[:, 0], ratio[:, 1], beta, label_smoothing)


def _quantiles(above: Tensor, below: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Return cDPO of the k-th smallest `above` less the k-th smallest `below`, at the place of the former: [B]."""
    ordered, places = above.sort(stable=True)
    each = logistic(beta * (ordered - below.sort(stable=True).values), label_smoothing)
    return each[places.argsort()]


@loss(
    title="β-DPO",
    paper="Wu et al. 2024, arXiv 2407.08639",
    formula="-log s(b D) over the selected pairs, b = max(0.001, beta (1 + a (mean D - running mean)))",
    scope="step",
    conventions="The authors' running moments start at 0, which fails at policy = reference; here at the first step's.",
)
def beta_dpo(
    policy: LogProbs,
    reference: LogProbs,
    *,
    noise: Tensor,
    state: dict[str, float],
    beta: Positive = 0.1,
    a: NonNegative = 0.6,
    mode_weight: Annotated[Fraction, Field(description="the fraction of a step's pairs left out")] = 0.2,
    momentum: Annotated[Fraction, Field(description="of the running mean and deviation of D")] = 0.9,
) -> tuple[Tensor, dict[str, float]]:
    """DPO with an adaptive beta per step, over the pairs whose margin D is near the running mean.

    Returns:
        The values [B], 0 for the pairs left out, and the running "mean" and "std" of D, from the first step's.
    """
    gap = margin((policy - reference).total)
    after = moving(gap.detach(), state, momentum)
    mask = selected(gap.detach(), noise, after, mode_weight)
    return dpo_of_selected(gap, mask, after["mean"], beta, a), after


def moving(gap: Tensor, state: dict[str, float], momentum: float) -> dict[str, float]:
    """Update the running mean and standard deviation (unbiased; 0 for one pair) with this step's margins [B]."""
    now = {"mean": gap.mean().item(), "std": gap.std().item() if len(gap) > 1 else 0.0}
    return {name: momentum * state.get(name, value) + (1 - momentum) * value for name, value in now.items()}


def selected(gap: Tensor, noise: Tensor, moments: dict[str, float], mode_weight: float) -> Tensor:
    """Sample int(B (1 - mode_weight)) pairs, at least one, without replacement, as a mask [B].

    A pair's weight is the normal density of its margin; the largest log-weights plus Gumbel noise are such a sample.
    """
    deviation = (gap - moments["mean"]) / moments["std"] if moments["std"] > 0 else torch.zeros_like(gap)
    tiny = torch.finfo(noise.dtype).tiny
    gumbel = -torch.log(-torch.log(noise.clamp(tiny, 1 - torch.finfo(noise.dtype).eps)))
    places = torch.topk(-0.5 * deviation**2 + gumbel, max(1, int(len(gap) * (1 - mode_weight)))).indices
    return torch.zeros_like(gap).index_fill(0, places, 1.0)


def dpo_of_selected(gap: Tensor, mask: Tensor, mean: float, beta: float, a: float) -> Tensor:
    """Return -log s(b D) of the selected pairs (mask [B]), divided by their share.

    b = max(0.001, beta (1 + a (mean D - mean))).
    """
    share = mask.mean()
    adaptive = beta * (1 + a * ((gap.detach() * mask).mean() / share - mean))
    return -F.logsigmoid(adaptive.clamp(min=SMALLEST_BETA) * gap) * mask / share
