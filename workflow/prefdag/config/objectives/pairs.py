"""Pairs against a reference: losses of D alone, the difference of the two log-ratios."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.config.objectives.entry import Objective
from prefdag.schema import NonNegative, Positive

REFERENCE = frozenset({"reference"})
Wrong = Annotated[float, Field(ge=0, le=0.5, description="the fraction of labels taken to be wrong, 0 to 0.5")]


class DPO(Objective):
    """Direct preference optimization."""

    title = "DPO"
    paper = "Rafailov et al. 2023, arXiv 2305.18290, eq. 7"
    formula = "-log s(beta D)"
    reads = REFERENCE
    first_step = "log(2)"
    method: Literal["dpo"]
    beta: Positive = 0.1


class CDPO(Objective):
    """Conservative DPO: labels are wrong with probability `label_smoothing`."""

    title = "cDPO"
    paper = "Mitchell 2023, A note on DPO with noisy preferences, eq. 3"
    formula = "-(1-e) log s(beta D) - e log s(-beta D)"
    reads = REFERENCE
    first_step = "log(2)"
    conventions = "TRL 1 accepts a label smoothing with its sigmoid loss and returns plain DPO."
    method: Literal["cdpo"]
    beta: Positive = 0.1
    label_smoothing: Wrong = 0.1


class Robust(Objective):
    """Robust DPO: unbiased under labels flipped with a known probability."""

    title = "Robust DPO"
    paper = "Chowdhury et al. 2024, arXiv 2403.00409"
    formula = "(-(1-e) log s(beta D) + e log s(-beta D)) / (1 - 2e)"
    reads = REFERENCE
    first_step = "log(2)"
    method: Literal["robust"]
    beta: Positive = 0.1
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="the fraction of labels known to be wrong, below 0.5")


class DPONorm(Objective):
    """DPO on average log-ratios."""

    title = "DPO-norm"
    paper = "open-instruct, dpo_norm"
    formula = "-log s(beta (d_w / n_w - d_l / n_l))"
    reads = REFERENCE
    first_step = "log(2)"
    method: Literal["dpo_norm"]
    beta: Positive = 5.0


class IPO(Objective):
    """Identity preference optimization. Tools disagree on sums or means, so `logprob` has no default."""

    title = "IPO"
    paper = "Azar et al. 2023, arXiv 2310.12036, eq. 17"
    formula = "(D - 1/(2 beta))^2, D of summed or averaged log-ratios"
    reads = REFERENCE
    first_step = "(1 / (2 * beta))**2"
    conventions = "The DPO repository and OpenRLHF sum, TRL and HALOs average; the same beta means different things."
    method: Literal["ipo"]
    beta: Positive = 0.1
    logprob: Literal["summed", "averaged"]


class Hinge(Objective):
    """The hinge on DPO's logit."""

    title = "Hinge"
    paper = "Liu et al. 2023, RSO, arXiv 2309.06657"
    formula = "max(0, 1 - beta D)"
    reads = REFERENCE
    first_step = "1"
    method: Literal["hinge"]
    beta: Positive = 0.1


class ODPO(Objective):
    """DPO with an offset: a pair whose scores lie further apart must be told apart further."""

    title = "ODPO"
    paper = "Amini et al. 2024, arXiv 2402.10571"
    formula = "-log s(beta D - alpha log(r_w - r_l)); 0 for a tied pair"
    reads = frozenset({"reference", "scores"})
    conventions = "In the authors' code a pair whose chosen response has the lower score is NaN; here it is an error."
    method: Literal["odpo"]
    beta: float = Field(0.5, gt=0, description="the authors' 0.7 for sentiment, 0.05 for toxicity, 0.5 for summaries")
    alpha: NonNegative = 1.0


class REBEL(Objective):
    """Regression of the difference of rewards on the difference of log-ratios."""

    title = "REBEL"
    paper = "Gao et al. 2024, arXiv 2404.16767"
    formula = "(D - eta (r_w - r_l))^2"
    reads = frozenset({"reference", "scores"})
    conventions = "The authors' reference is the previous iterate; over one round it is the SFT policy."
    method: Literal["rebel"]
    eta: Positive = 1.0


class EXO(Objective):
    """Exact optimization: the reverse KL of the policy's preference to the smoothed label."""

    title = "EXO"
    paper = "Ji et al. 2024, arXiv 2402.00856, eq. 16"
    formula = "q (log q - log(1-e)) + (1-q) (log(1-q) - log e), q = s(beta D)"
    reads = REFERENCE
    conventions = "The authors' code leaves out log(1-e) and fixes log e at -10: `target: authors`."
    read_with = (("label_smoothing", "target", "smoothed"),)
    method: Literal["exo_pair"]
    beta: Positive = 0.1
    label_smoothing: float = Field(1e-3, gt=0, le=0.5, description="above 0, at most 0.5")
    target: Literal["smoothed", "authors"] = "smoothed"


class DiscoPOP(Objective):
    """The loss that a language model discovered: logistic and exponential, blended by the logit."""

    title = "DiscoPOP"
    paper = "Lu et al. 2024, arXiv 2406.08414, eq. 5"
    formula = "-log s(z) (1 - s(z/tau)) + exp(-z) s(z/tau), z = beta D"
    reads = REFERENCE
    first_step = "(log(2) + 1) / 2"
    method: Literal["discopop"]
    beta: Positive = 0.05
    tau: float = Field(0.05, gt=0, le=1, description="above 0, at most 1, beyond which the loss overflows")


class FDPO(Objective):
    """DPO under another divergence than the reverse KL."""

    title = "f-DPO"
    paper = "Wang et al. 2023, arXiv 2309.16240"
    formula = "-log s(beta (f'(u_w) - f'(u_l))), u = exp(d); f'(u) = -1/u, log(u/(1+u)) or (1 - u^-alpha)/alpha"
    reads = REFERENCE
    first_step = "log(2)"
    conventions = "TRL's coefficient of the alpha divergence is 1 - alpha."
    read_with = (("alpha", "divergence", "alpha"),)
    method: Literal["f_dpo"]
    beta: Positive = 0.1
    divergence: Literal["forward_kl", "jensen_shannon", "alpha"]
    alpha: float = Field(0.5, gt=0, lt=1, description="of the alpha divergence; 0 would be DPO, 1 the forward KL")


class LogRatio(Objective):
    """DPO's gradient without its weight, under which the DPO paper saw models degenerate."""

    title = "Log-ratio"
    paper = "Rafailov et al. 2023, arXiv 2305.18290, section 4"
    formula = "-beta D"
    reads = REFERENCE
    first_step = "0"
    method: Literal["log_ratio"]
    beta: Positive = 0.1
