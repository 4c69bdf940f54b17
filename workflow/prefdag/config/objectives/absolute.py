"""Pairs against a reference: losses in which a response's own log-ratio counts, not the difference alone."""

from typing import Literal

from prefdag.config.objectives.entry import Objective, StepIfPerToken
from prefdag.config.objectives.pairs import REFERENCE
from prefdag.schema import NonNegative, Positive


class CalDPO(Objective):
    """Calibrated DPO: implicit rewards held to plus and minus 1/2."""

    title = "Cal-DPO"
    paper = "Xiao et al. 2024, arXiv 2412.14516"
    formula = "-log s(D) + ((d_w - 1/(2 beta))^2 + (d_l + 1/(2 beta))^2) / 2"
    reads = REFERENCE
    first_step = "log(2) + (1 / (2 * beta))**2"
    conventions = (
        "No beta in the first term. Turbo-alignment leaves out the 1/2; the script's beta is 0.001, README 0.002."
    )
    method: Literal["caldpo"]
    beta: Positive = 0.001


class SPPOHard(Objective):
    """Self-play preference optimization with hard labels."""

    title = "SPPO"
    paper = "Wu et al. 2024, arXiv 2405.00675, eq. 4.7"
    formula = "((d_w - 1/(2 beta))^2 + (d_l + 1/(2 beta))^2) / 2"
    reads = REFERENCE
    first_step = "(1 / (2 * beta))**2"
    conventions = "TRL's is twice this."
    method: Literal["sppo_hard"]
    beta: Positive = 0.001


class DPOP(Objective):
    """DPO-Positive: DPO with a penalty where the chosen response becomes less likely than under the reference."""

    title = "DPOP"
    paper = "Pal et al. 2024, arXiv 2402.13228, eq. 3"
    formula = "-log s(beta (D - lam max(0, -d_w)))"
    reads = REFERENCE
    first_step = "log(2)"
    conventions = "The penalty stands inside beta."
    method: Literal["dpop"]
    beta: Positive = 0.3
    lam: NonNegative = 50.0


class RPO(Objective):
    """DPO plus the chosen response's negative log-likelihood, as in iterative reasoning preference optimization."""

    title = "RPO"
    paper = "Pang et al. 2024, arXiv 2404.19733"
    formula = "w_dpo (-log s(beta D)) + w_nll NLL, NLL -A_w or the step's token mean"
    reads = REFERENCE
    scope = StepIfPerToken()
    conventions = (
        "The paper, LLaMA-Factory and OpenRLHF average each response (per_response), TRL the tokens (per_token)."
    )
    method: Literal["rpo"]
    beta: Positive = 0.1
    w_dpo: NonNegative = 1.0
    w_nll: NonNegative = 1.0
    nll: Literal["per_response", "per_token"] = "per_response"


class NCAPair(Objective):
    """Noise contrastive alignment of a pair: absolute likelihoods, not only their ratio."""

    title = "NCA (pairs)"
    paper = "Chen et al. 2024, arXiv 2402.05369"
    formula = "-log s(beta d_w) - log s(-beta d_w)/2 - log s(-beta d_l)/2"
    reads = REFERENCE
    first_step = "2 * log(2)"
    method: Literal["nca_pair"]
    beta: Positive = 0.01


class BiasedNCA(Objective):
    """A binary classifier of chosen and rejected, in NCA's code."""

    title = "Biased NCA"
    paper = "Chen et al. 2024, arXiv 2402.05369, code"
    formula = "-log s(beta d_w) - log s(-beta d_l)"
    reads = REFERENCE
    first_step = "2 * log(2)"
    conventions = "TRL 1's bco_pair is this: a BCO whose reward shift stays 0."
    method: Literal["biased_nca"]
    beta: Positive = 0.01


class APOZero(Objective):
    """Anchored preference optimization: chosen up, rejected down."""

    title = "APO-zero"
    paper = "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7"
    formula = "1 - s(beta d_w) + s(beta d_l)"
    reads = REFERENCE
    first_step = "1"
    conventions = "Some implementations leave out the 1."
    method: Literal["apo_zero"]
    beta: Positive = 0.1


class APODown(Objective):
    """Anchored preference optimization: both down, the rejected further."""

    title = "APO-down"
    paper = "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8"
    formula = "s(beta d_w) + 1 - s(beta D)"
    reads = REFERENCE
    first_step = "1"
    conventions = "Some implementations leave out the 1."
    method: Literal["apo_down"]
    beta: Positive = 0.1
