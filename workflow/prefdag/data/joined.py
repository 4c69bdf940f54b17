"""Join token stores to one."""

from collections.abc import Sequence

import numpy as np

from prefdag.data.token_store import Store
from prefdag.errors import UserError


def join_stores(stores: Sequence[Store]) -> Store:
    """Return the comparisons of all stores, in their order, with arrays in memory.

    The result has scores if every store that holds comparisons has some.

    Raises:
        UserError: the stores' comparisons have different numbers of responses.
    """
    first, *others = stores
    for other in others:
        if other.num_responses != first.num_responses:
            raise UserError(
                f"{other.folder}: its comparisons have {other.num_responses} responses and those of {first.folder} "
                f"{first.num_responses}; train on comparisons of {other.num_responses} responses"
            )
    begins = np.cumsum([0, *(len(store.tokens) for store in stores)])
    scores = [store.scores for store in stores if len(store)]
    return Store(
        folder=first.folder,
        tokens=np.concatenate([store.tokens for store in stores]),
        offsets=np.concatenate([store.offsets + begin for store, begin in zip(stores, begins[:-1], strict=True)]),
        rows=np.concatenate([store.rows for store in stores]),
        prompts=np.concatenate([store.prompts for store in stores]),
        scores=np.concatenate(scores) if scores and all(each is not None for each in scores) else None,  # type: ignore
    )
