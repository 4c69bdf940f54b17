"""The registry of preference losses: what each reads, its parameters, and where it comes from.

Torch-free, so that every row of every suite is checked while Snakemake parses. The arithmetic stands in
`prefdag.losses.registry`, one function per entry, of the same name.
"""

from typing import Any, get_args

from prefdag.config.objectives import absolute, batch, free, pairs, rankings, singles, tokens
from prefdag.config.objectives.entry import Objective
from prefdag.config.objectives.own import is_user_loss, user_loss
from prefdag.errors import UserError

OBJECTIVES: dict[str, type[Objective]] = {
    get_args(entry.model_fields["method"].annotation)[0]: entry
    for entry in (
        *(pairs.DPO, pairs.CDPO, pairs.Robust, pairs.DPONorm, pairs.IPO, pairs.Hinge, pairs.ODPO, pairs.REBEL),
        *(pairs.EXO, pairs.DiscoPOP, pairs.FDPO, pairs.LogRatio),
        *(absolute.CalDPO, absolute.SPPOHard, absolute.DPOP, absolute.RPO, absolute.NCAPair, absolute.BiasedNCA),
        *(absolute.APOZero, absolute.APODown),
        *(batch.AOT, batch.AOTUnpaired, batch.BetaDPO),
        *(tokens.LDDPO, tokens.WPO, tokens.TDPO1, tokens.TDPO2),
        *(free.SimPO, free.AlphaPO, free.ORPO, free.CPO, free.SLiC, free.PreferredFT, free.Unlikelihood),
        *(free.UnlikelihoodTokens, free.CPL, free.CPLRef),
        *(singles.KTO, singles.BCO, singles.APOZeroUnpaired),
        *(rankings.PlackettLuce, rankings.MultiNegative, rankings.AllPairs, rankings.InfoNCA, rankings.NCA),
    )
}


def entry_of(method: Any, where: str, inside: str) -> type[Objective]:
    """The entry of a method: the registry's, or of `my_losses.py:my_loss` what that file of the user's own states."""
    if is_user_loss(method):
        return user_loss(method, where, inside)
    if not isinstance(method, str) or method not in OBJECTIVES:
        raise UserError(f"{where}: {inside}.method: expected one of {', '.join(sorted(OBJECTIVES))}, got {method!r}")
    return OBJECTIVES[method]


def objective(values: dict[str, Any], where: str, inside: str) -> Objective:
    """The validated objective of one row; `where` is the suite's file, `inside` the row.

    Raises `UserError` for an unknown method, and for an option that the method does not read.
    """
    method = values.get("method")
    entry = entry_of(method, where, inside)
    own = [name for name in entry.model_fields if name != "method"]
    for key in values:
        if key not in entry.model_fields:
            raise UserError(
                f"{where}: {inside}.{key}: {method} does not read {key}; its options are {', '.join(own) or 'none'}"
            )
    return entry.parse(values, where, inside)
