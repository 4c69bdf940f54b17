"""Single responses, each desirable or not, against a reference."""

from typing import Literal

from prefdag.config.objectives.entry import Objective
from prefdag.schema import NonNegative, Positive


class KTO(Objective):
    """Kahneman-Tversky optimization: utility against a reference point, the policy's KL to the reference."""

    title = "KTO"
    paper = "Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7"
    formula = "lambda_d (1 - s(beta (d - z))) or lambda_u (1 - s(beta (z - d))), z = max(0, mean mismatched log-ratio)"
    reads = frozenset({"reference", "labels", "mismatched"})
    responses = "one"
    scope = "step"
    conventions = "z is of the whole step. Some paired variants give the chosen the rejected's KL."
    method: Literal["kto"]
    beta: Positive = 0.1
    lambda_d: NonNegative = 1.0
    lambda_u: NonNegative = 1.0


class BCO(Objective):
    """Binary classifier optimization: rewards against their running mean."""

    title = "BCO"
    paper = "Jung et al. 2024, arXiv 2404.04656"
    formula = "-log s(beta d - delta) or -log s(delta - beta d), delta the mean of all beta d so far"
    reads = frozenset({"reference", "labels", "state"})
    responses = "one"
    scope = "step"
    first_step = "log(2)"
    conventions = "delta counts every example once; TRL's bco_pair counted batches, and TRL 1's has no delta."
    method: Literal["bco"]
    beta: Positive = 0.1


class APOZeroUnpaired(Objective):
    """Anchored preference optimization by halves: desirable up, undesirable down."""

    title = "APO-zero (unpaired)"
    paper = "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7"
    formula = "1 - s(beta d) or s(beta d)"
    reads = frozenset({"reference", "labels"})
    responses = "one"
    first_step = "1 / 2"
    method: Literal["apo_zero_unpaired"]
    beta: Positive = 0.1
