"""The registry of preference losses: what each reads, its parameters, and where it comes from.

Torch-free, so that every row of every suite is checked while Snakemake parses. The arithmetic stands in
`prefdag.losses`, one function per entry, of the same name.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from prefdag.config.section import Positive, Section
from prefdag.errors import UserError


class Objective(Section):
    """One preference loss. `reads` lists what it needs beside the policy's log-probs."""

    paper: ClassVar[str]
    formula: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    method: str

    def parameters(self) -> dict[str, Any]:
        """The loss's own keyword arguments."""
        return self.model_dump(exclude={"method"})


class DPO(Objective):
    """Direct preference optimization."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290, eq. 7"
    formula = "-log s(beta D)"
    reads = frozenset({"reference"})
    method: Literal["dpo"]
    beta: Positive = 0.1


class CDPO(Objective):
    """Conservative DPO: labels are wrong with probability `label_smoothing`."""

    paper = "Mitchell 2023, A note on DPO with noisy preferences, eq. 3"
    formula = "-(1-e) log s(beta D) - e log s(-beta D)"
    reads = frozenset({"reference"})
    method: Literal["cdpo"]
    beta: Positive = 0.1
    label_smoothing: float = Field(0.1, ge=0, le=0.5)


class IPO(Objective):
    """Identity preference optimization. Tools disagree on sums or means, so `logprob` has no default."""

    paper = "Azar et al. 2023, arXiv 2310.12036, eq. 17"
    formula = "(D - 1/(2 beta))^2, D of summed or averaged log-ratios"
    reads = frozenset({"reference"})
    method: Literal["ipo"]
    beta: Positive = 0.1
    logprob: Literal["summed", "averaged"]


class SimPO(Objective):
    """Simple preference optimization: average log-probs, a target margin, no reference."""

    paper = "Meng et al. 2024, arXiv 2405.14734, eq. 6"
    formula = "-log s(beta (A_w - A_l) - gamma), gamma = beta * gamma_beta_ratio"
    method: Literal["simpo"]
    beta: Positive = 2.0
    gamma_beta_ratio: float = Field(0.25, ge=0, description="gamma / beta, as the authors' code has it")


class PreferredFT(Objective):
    """Supervised fine-tuning on the chosen responses only, the DPO paper's Preferred-FT."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290, section 6"
    formula = "-S_w"
    method: Literal["preferred_ft"]


class Unlikelihood(Objective):
    """The DPO paper's Unlikelihood baseline: raise the chosen, lower alpha times the rejected log-prob."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290, section 6"
    formula = "-S_w + alpha S_l"
    method: Literal["unlikelihood"]
    alpha: float = Field(0.5, ge=0, le=1)


OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "cdpo": CDPO,
    "ipo": IPO,
    "simpo": SimPO,
    "preferred_ft": PreferredFT,
    "unlikelihood": Unlikelihood,
}


def objective(values: dict[str, Any], where: str, inside: str) -> Objective:
    """The validated objective of one row; `where` is the suite's file, `inside` the row.

    Raises `UserError` for an unknown method, and for an option that the method does not read.
    """
    method = values.get("method")
    if method not in OBJECTIVES:
        raise UserError(f"{where}: {inside}.method: expected one of {', '.join(sorted(OBJECTIVES))}, got {method!r}")
    entry = OBJECTIVES[method]
    own = [name for name in entry.model_fields if name != "method"]
    for key in values:
        if key not in entry.model_fields:
            raise UserError(
                f"{where}: {inside}.{key}: {method} does not read {key}; its options are {', '.join(own) or 'none'}"
            )
    return entry.parse(values, where, inside)
