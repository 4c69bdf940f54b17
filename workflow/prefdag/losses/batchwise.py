"""Pairs against a reference: losses in which the pairs of a step meet. They must see the whole step at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.losses.functional import logistic
from prefdag.models.logprobs import LogProbs, margin

SMALLEST_BETA = 1e-3


def aot(policy: LogProbs, reference: LogProbs, *, beta: float, label_smoothing: float) -> Tensor:
    """Melnyk et al. 2024, paired: cDPO of the policy's sorted gaps S_w - S_l less the reference's sorted R_w - R_l."""
    return _quantiles(margin(policy.total), margin(reference.total), beta, label_smoothing)


def aot_unpaired(policy: LogProbs, reference: LogProbs, *, beta: float, label_smoothing: float) -> Tensor:
    """Melnyk et al. 2024, unpaired: cDPO of the sorted d_w less the sorted d_l."""
    ratio = (policy - reference).total
    return _quantiles(ratio[:, 0], ratio[:, 1], beta, label_smoothing)


def _quantiles(above: Tensor, below: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The k-th smallest of `above` against the k-th smallest of `below`, each in the place of the former: [B]."""
    ordered, places = above.sort(stable=True)
    each = logistic(beta * (ordered - below.sort(stable=True).values), label_smoothing)
    return each[places.argsort()]


def beta_dpo(
    policy: LogProbs,
    reference: LogProbs,
    *,
    noise: Tensor,
    state: dict[str, float],
    beta: float,
    a: float,
    mode_weight: float,
    momentum: float,
) -> tuple[Tensor, dict[str, float]]:
    """Wu et al. 2024 (beta-DPO): DPO with a beta of the step's own, over the pairs near the running mean.

    Returns values [B], 0 for the pairs left out, and the running "mean" and "std" of D; they start as the first step's.
    """
    gap = margin((policy - reference).total)
    after = moving(gap.detach(), state, momentum)
    kept = selected(gap.detach(), noise, after, mode_weight)
    return dpo_of_kept(gap, kept, after["mean"], beta, a), after


def moving(gap: Tensor, state: dict[str, float], momentum: float) -> dict[str, float]:
    """The running mean and standard deviation (unbiased; of one pair 0) with this step's gaps [B] in them."""
    now = {"mean": gap.mean().item(), "std": gap.std().item() if len(gap) > 1 else 0.0}
    return {name: momentum * state.get(name, value) + (1 - momentum) * value for name, value in now.items()}


def selected(gap: Tensor, noise: Tensor, moments: dict[str, float], mode_weight: float) -> Tensor:
    """Mask [B] of the int(B (1 - mode_weight)) pairs kept, at least one: drawn without replacement, each weighted by
    the normal density of its gap. The largest of log-weight plus Gumbel noise are such a draw.
    """
    deviation = (gap - moments["mean"]) / moments["std"] if moments["std"] > 0 else torch.zeros_like(gap)
    tiny = torch.finfo(noise.dtype).tiny
    gumbel = -torch.log(-torch.log(noise.clamp(tiny, 1 - torch.finfo(noise.dtype).eps)))
    kept = torch.topk(-0.5 * deviation**2 + gumbel, max(1, int(len(gap) * (1 - mode_weight)))).indices
    return torch.zeros_like(gap).index_fill(0, kept, 1.0)


def dpo_of_kept(gap: Tensor, kept: Tensor, mean: float, beta: float, a: float) -> Tensor:
    """-log s(b D) of the pairs kept (mask [B]), over their share, with b = max(0.001, beta (1 + a (mean D - mean)))."""
    share = kept.mean()
    own = beta * (1 + a * ((gap.detach() * kept).mean() / share - mean))
    return -F.logsigmoid(own.clamp(min=SMALLEST_BETA) * gap) * kept / share
