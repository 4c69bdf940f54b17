"""Pairs against a reference: losses in which a response's own log-ratio counts, not the difference alone."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.losses.decorator import loss
from prefdag.losses.functional import chosen_nll
from prefdag.losses.pairwise import dpo
from prefdag.models.logprobs import LogProbs, margin
from prefdag.schema import NonNegative, Positive


@loss(
    title="Cal-DPO",
    paper="Xiao et al. 2024, arXiv 2412.14516",
    formula="-log s(D) + ((d_w - 1/(2 beta))^2 + (d_l + 1/(2 beta))^2) / 2",
    first_step="log(2) + (1 / (2 * beta))**2",
    conventions="No beta in the first term. Turbo-alignment omits the 1/2; its script has 0.001, its README 0.002.",
)
def caldpo(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.001) -> Tensor:
    """Calibrated DPO: implicit rewards held to plus and minus 1/2."""
    ratio = (policy - reference).total
    return -F.logsigmoid(margin(ratio)) + _squares(ratio, beta)


@loss(
    title="SPPO",
    paper="Wu et al. 2024, arXiv 2405.00675, eq. 4.7",
    formula="((d_w - 1/(2 beta))^2 + (d_l + 1/(2 beta))^2) / 2",
    first_step="(1 / (2 * beta))**2",
    conventions="TRL's is twice this.",
)
def sppo_hard(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.001) -> Tensor:
    """Self-play preference optimization with hard labels."""
    return _squares((policy - reference).total, beta)


def _squares(ratio: Tensor, beta: float) -> Tensor:
    return ((ratio[:, 0] - 1 / (2 * beta)) ** 2 + (ratio[:, 1] + 1 / (2 * beta)) ** 2) / 2


@loss(
    title="DPOP",
    paper="Pal et al. 2024, arXiv 2402.13228, eq. 3",
    formula="-log s(beta (D - lam max(0, -d_w)))",
    first_step="log(2)",
    conventions="The penalty is inside beta.",
)
def dpop(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.3, lam: NonNegative = 50.0) -> Tensor:
    """DPO-Positive: DPO with a penalty where the chosen response becomes less likely than under the reference."""
    ratio = (policy - reference).total
    return -F.logsigmoid(beta * (margin(ratio) - lam * F.relu(-ratio[:, 0])))


@loss(
    title="RPO",
    paper="Pang et al. 2024, arXiv 2404.19733",
    formula="w_dpo (-log s(beta D)) + w_nll NLL, NLL -A_w or the step's token mean",
    step_with=("nll", "per_token"),
    conventions="The paper, LLaMA-Factory and OpenRLHF average each response (per_response), TRL tokens (per_token).",
)
def rpo(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    w_dpo: NonNegative = 1.0,
    w_nll: NonNegative = 1.0,
    nll: Literal["per_response", "per_token"] = "per_response",
) -> Tensor:
    """DPO plus the chosen response's negative log-likelihood, as in iterative reasoning preference optimization."""
    return w_dpo * dpo(policy, reference, beta=beta) + w_nll * chosen_nll(policy, nll)


@loss(
    title="NCA (pairs)",
    paper="Chen et al. 2024, arXiv 2402.05369",
    formula="-log s(beta d_w) - log s(-beta d_w)/2 - log s(-beta d_l)/2",
    first_step="2 * log(2)",
)
def nca_pair(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.01) -> Tensor:
    """Noise contrastive alignment of a pair: absolute likelihoods, not only their ratio."""
    reward = beta * (policy - reference).total
    return -F.logsigmoid(reward[:, 0]) - F.logsigmoid(-reward).sum(1) / 2


@loss(
    title="Biased NCA",
    paper="Chen et al. 2024, arXiv 2402.05369, code",
    formula="-log s(beta d_w) - log s(-beta d_l)",
    first_step="2 * log(2)",
    conventions="TRL 1's bco_pair is this: a BCO whose reward shift stays 0.",
)
def biased_nca(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.01) -> Tensor:
    """A binary classifier of chosen and rejected, in NCA's code."""
    reward = beta * (policy - reference).total
    return -F.logsigmoid(reward[:, 0]) - F.logsigmoid(-reward[:, 1])


@loss(
    title="APO-zero",
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7",
    formula="1 - s(beta d_w) + s(beta d_l)",
    first_step="1",
    conventions="Some implementations leave out the 1.",
)
def apo_zero(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Anchored preference optimization: chosen up, rejected down."""
    reward = beta * (policy - reference).total
    return torch.sigmoid(-reward[:, 0]) + torch.sigmoid(reward[:, 1])


@loss(
    title="APO-down",
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8",
    formula="s(beta d_w) + 1 - s(beta D)",
    first_step="1",
    conventions="Some implementations leave out the 1.",
)
def apo_down(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Anchored preference optimization: both down, the rejected further."""
    reward = beta * (policy - reference).total
    return torch.sigmoid(reward[:, 0]) + torch.sigmoid(-margin(reward))
