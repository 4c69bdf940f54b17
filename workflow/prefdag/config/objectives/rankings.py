"""K >= 2 responses to a prompt, best first or scored, against a reference."""

from typing import Literal

from pydantic import Field

from prefdag.config.objectives.entry import Objective
from prefdag.config.objectives.pairs import REFERENCE
from prefdag.schema import Positive


class PlackettLuce(Objective):
    """DPO of a full ranking; of two responses it is DPO."""

    title = "Plackett-Luce"
    paper = "Rafailov et al. 2023, arXiv 2305.18290, appendix A.3"
    formula = "sum over k < K of log sum_{j >= k} exp(beta d_j) - beta d_k"
    reads = REFERENCE
    responses = "many"
    method: Literal["plackett_luce"]
    beta: Positive = 0.1


class MultiNegative(Objective):
    """Softmax DPO: one chosen response, several negatives."""

    title = "S-DPO"
    paper = "Chen et al. 2024, S-DPO, arXiv 2406.09215"
    formula = "-log softmax(beta d) of the first response"
    reads = REFERENCE
    responses = "many"
    method: Literal["multi_negative"]
    beta: Positive = 0.1


class AllPairs(Objective):
    """DPO averaged over every pair of a ranking."""

    title = "DPO (all pairs)"
    paper = "Ouyang et al. 2022, arXiv 2203.02155, eq. 1, with DPO's reward"
    formula = "mean over i < j of -log s(beta (d_i - d_j))"
    reads = REFERENCE
    responses = "many"
    first_step = "log(2)"
    method: Literal["all_pairs"]
    beta: Positive = 0.1


class InfoNCA(Objective):
    """Cross-entropy of the policy's softmax against the scores' softmax."""

    title = "InfoNCA"
    paper = "Chen et al. 2024, arXiv 2402.05369"
    formula = "-sum_i softmax(r/alpha)_i log softmax(beta d)_i"
    reads = frozenset({"reference", "scores"})
    responses = "many"
    conventions = "The authors' code raises the first response's score by 0.01: `first_bonus`."
    method: Literal["infonca_k"]
    beta: Positive = 0.01
    alpha: Positive = 1.0
    first_bonus: float = Field(0.01, ge=0, description="added to the first response's score")


class NCA(Objective):
    """Noise contrastive alignment of K scored responses."""

    title = "NCA"
    paper = "Chen et al. 2024, arXiv 2402.05369"
    formula = "-sum_i softmax(r/alpha)_i log s(beta d_i) - sum_i log s(-beta d_i) / K"
    reads = frozenset({"reference", "scores"})
    responses = "many"
    first_step = "2 * log(2)"
    conventions = "The authors' code raises the first response's score by 0.01: `first_bonus`."
    method: Literal["nca_k"]
    beta: Positive = 0.01
    alpha: Positive = 1.0
    first_bonus: float = Field(0.01, ge=0, description="added to the first response's score")
