"""Views of a token store: its tokens as other comparisons, by index arithmetic, without copying a token.

`Unpaired` keeps the flat order of response tokens, so the store's reference cache serves it too.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prefdag.config.objectives import Objective
from prefdag.data.token_store import Comparison, Store
from prefdag.errors import UserError
from prefdag.seeds import generator

LOG_OF_GAP = frozenset({"odpo"})  # losses without a value if the chosen response has the lower score


@dataclass(frozen=True)
class Unpaired:
    """Each response of a store as a comparison with K = 1.

    The best response of a comparison is desirable, the others are not; the scores of single responses are their labels.
    Comparison i * K + k is response k of the store's comparison i.
    """

    store: Store

    @property
    def num_responses(self) -> int:
        return 1

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.repeat(self.store.rows, self.store.num_responses)

    @property
    def prompts(self) -> NDArray[np.int64]:
        return np.repeat(self.store.prompts, self.store.num_responses)

    @property
    def scores(self) -> NDArray[np.float32] | None:
        return None if self.store.scores is None else self.store.scores.reshape(-1, 1)

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """Whether each response is desirable, [N * K]."""
        if self.store.num_responses == 1:
            assert self.store.scores is not None
            return np.asarray(self.store.scores)[:, 0] == 1
        return np.arange(len(self)) % self.store.num_responses == 0

    def __len__(self) -> int:
        return len(self.store) * self.store.num_responses

    def __getitem__(self, index: int) -> Comparison:
        comparison, response = divmod(index, self.store.num_responses)
        whole = self.store[comparison]
        return Comparison(whole.prompt, whole.responses[response : response + 1])

    def lengths(self) -> NDArray[np.int64]:
        sizes = np.diff(self.store.offsets, axis=1)
        return (sizes[:, :1] + sizes[:, 1:]).ravel()

    def response_starts(self) -> NDArray[np.int64]:
        """Return where each response starts among all response tokens, whose order is the store's, [N * K + 1]."""
        return np.concatenate([[0], np.cumsum(np.diff(self.store.offsets[:, 1:], axis=1))])


@dataclass(frozen=True)
class Mismatched:
    """Each prompt of a K = 1 view with the response to another prompt, fixed for the whole training.

    Reference: Ethayarajh et al. 2024, section 4.1, where KTO estimates KL(policy || reference) on such examples.
    """

    of: Unpaired
    seed: int

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Comparison:
        return Comparison(self.of[index].prompt, self.of[int(self.partner[index])].responses)

    @property
    def is_possible(self) -> bool:
        """Whether every prompt can get another prompt's response: none has more than half of the examples."""
        sizes = np.unique(np.asarray(self.of.prompts), return_counts=True)[1]
        return 2 * int(sizes.max()) <= len(self.of)

    @cached_property
    def partner(self) -> NDArray[np.int64]:
        """The example whose response each prompt gets, [N]: a permutation that depends on seed and prompts alone.

        Examples are ordered randomly but grouped by prompt, then rotated by the size of the largest group, so that each
        leaves its group. Raises `UserError` if one prompt has more than half of the examples.
        """
        prompts = np.asarray(self.of.prompts)
        _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
        if not self.is_possible:
            raise UserError(
                f"{self.of.store.folder}: this loss reads responses to other prompts, but {sizes.max()} of the "
                f"{len(prompts)} examples answer one and the same prompt; add prompts or choose another loss"
            )
        random = generator(self.seed, "mismatched")
        order = np.lexsort((random.permutation(len(prompts)), random.permutation(len(sizes))[group]))
        partner = np.empty(len(prompts), dtype=np.int64)
        partner[order] = np.roll(order, -sizes.max())
        return partner


def objective_view(store: Store, objective: Objective) -> Store | Unpaired:
    """Return the comparisons that an objective trains on. Raises `UserError` if the store has not what it reads."""
    num = store.num_responses
    if objective.responses == "one":
        if num == 1 and store.scores is None:
            raise UserError(
                f"{store.folder}: {objective.method} reads labelled responses, and these single ones have no labels; "
                "give it comparisons of two responses or more"
            )
        return Unpaired(_scored(store, objective))
    if num < 2 or (objective.responses == "two" and num > 2):
        wanted = "two responses" if objective.responses == "two" else "two responses or more"
        raise UserError(
            f"{store.folder}: {objective.method} compares {wanted}, and each prompt of this store has {num}; "
            f"train it on {'`dataset: comparisons`' if num > 2 else 'comparisons'}"
        )
    return _scored(store, objective)


def _scored(store: Store, objective: Objective) -> Store:
    if "scores" not in objective.reads:
        return store
    if store.scores is None:
        raise UserError(
            f"{store.folder}: {objective.method} reads scores, and these comparisons have none; give rows `scores`, or "
            "choose a loss that reads none"
        )
    if objective.method in LOG_OF_GAP and (wrong := store.rows[store.scores[:, 0] < store.scores[:, 1]] + 1).size:
        named = ", ".join(map(str, wrong[:10])) + (", ..." if wrong.size > 10 else "")
        raise UserError(
            f"{store.folder}: {objective.method} takes the log of chosen minus rejected score, and the chosen one has "
            f"the lower score in source rows {named}; put the better response first in these rows"
        )
    return store
