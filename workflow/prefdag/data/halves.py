"""One half of the comparisons of a store, by prompt, so that two reward models share no training data."""

from dataclasses import replace
from typing import Literal

import numpy as np

from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.seeds import generator


def half_of(store: Store, half: Literal["first", "second"] | None) -> Store:
    """Return the comparisons of a random half of the prompts, in their order; the halves share no prompt.

    Without `half` it is the store itself. The tokens stay where they are, and
    `response_starts` is that of the half, so no reference cache serves it.

    Raises:
        UserError: there are fewer than two prompts.
    """
    if half is None:
        return store
    prompts = np.unique(store.prompts)
    if len(prompts) < 2:
        raise UserError(f"{store.folder}: one prompt cannot be halved; remove `half` from the section `reward`")
    shuffled = generator(0, "halves of the comparisons").permutation(prompts)
    middle = len(prompts) // 2
    inside = np.isin(store.prompts, shuffled[:middle] if half == "first" else shuffled[middle:])
    scores = None if store.scores is None else store.scores[inside]
    return replace(
        store, offsets=store.offsets[inside], rows=store.rows[inside], prompts=store.prompts[inside], scores=scores
    )
