"""The registry of preference losses: what each reads, its parameters, and where it comes from.

Torch-free, so that every row of every suite is checked while Snakemake parses. The arithmetic stands in
`prefdag.losses`, one function per entry, of the same name.
"""

from typing import Any

from prefdag.config.objectives.entry import Objective
from prefdag.config.objectives.free import PreferredFT, SimPO, Unlikelihood
from prefdag.config.objectives.pairs import CDPO, DPO, IPO
from prefdag.errors import UserError

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
