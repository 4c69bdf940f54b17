"""What the proofs of the whole family share: a row for every loss, its alignment on a tiny store, and its oracle."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from comparisons import comparisons, stored, tiny
from prefdag.config.objectives import OBJECTIVES, objective
from prefdag.data.token_store import Comparison, Store
from prefdag.data.views import Unpaired, objective_view
from prefdag.losses.registry import loss_of
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.naive import naive_logprobs, padded_rows, transformers_attention
from prefdag.models.packing import Segments, micro_batches, pack
from prefdag.seeds import generator
from prefdag.training.loop import Batch, MicroBatch
from prefdag.training.mismatched import MismatchedRatios
from prefdag.training.preference_task import PreferenceTask

NUM = 13  # comparisons of a store
SEED = 5
# Every entry of the registry, stated where it has no default; where a choice decides what a step is, both.
ROWS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in OBJECTIVES},
    "ipo": {"method": "ipo", "logprob": "summed"},
    "f_dpo": {"method": "f_dpo", "divergence": "alpha"},
    "ld_dpo": {"method": "ld_dpo", "alpha": 0.3},
    "rpo per_token": {"method": "rpo", "nll": "per_token"},
    "orpo per_token": {"method": "orpo", "nll": "per_token"},
    "cpo per_response": {"method": "cpo", "nll": "per_response"},
}


def store_of(name: str, folder: Path) -> Store:
    """Pairs, or four responses for a loss of many; scores fall from the best response on, prompts come in twos."""
    num = {"one": 2, "two": 2, "many": 4}[OBJECTIVES[ROWS[name]["method"]].responses]
    scores = [[2.0 + 0.1 * row - 0.7 * k for k in range(num)] for row in range(NUM)]
    return stored(folder / "store", comparisons(NUM, num, seed=num), scores, [row // 2 for row in range(NUM)])


class Live:
    """A reference computed once, a comparison at a time, in float64."""

    def __init__(self, model: PreTrainedModel, view: Store | Unpaired) -> None:
        with torch.no_grad():
            self.tokens = [logprobs(model, pack([view[index]])).tokens for index in range(len(view))]

    def __call__(self, ids: Sequence[int], batch: Segments | LogProbs) -> LogProbs:
        return LogProbs(torch.cat([self.tokens[index] for index in ids]), batch.owner, batch.shape)


def aligned(name: str, folder: Path, model: PreTrainedModel | None = None) -> PreferenceTask:
    """The loss of one row on its store, in float64; the reference is another model than the policy."""
    row, model, other = objective(ROWS[name], "tests", name), model or tiny(), tiny(seed=1)
    view = objective_view(store_of(name, folder), row)
    mismatched = None
    if isinstance(view, Unpaired):
        mismatched = MismatchedRatios(other, view, SEED, 60)
        mismatched.model = model
    return PreferenceTask(row, model, view, Live(other, view), other, mismatched, SEED)


def batch_of(view: Store | Unpaired, ids: list[int], tokens_per_batch: int, number: int = 0) -> Batch:
    def packings() -> Iterator[MicroBatch]:
        for taken, rows in micro_batches(ids, view.lengths(), tokens_per_batch):
            yield taken, pack([view[index] for index in taken], rows)

    return Batch(number, ids, packings)


def distributions(model: PreTrainedModel, result: Sequence[Comparison]) -> Tensor:
    """log p over the vocabulary at every response token, the padded way: [T, V]."""
    tokens, mask, counted = padded_rows(result)
    with transformers_attention(model):
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits[:, :-1].log_softmax(-1)[counted[:, 1:]]


def plain_loss(alignment: PreferenceTask, ids: list[int], number: int) -> Tensor:
    """The first step's loss by the padded path, whole distributions and no cache: a scalar with gradient."""
    row, model, other, view = alignment.objective, alignment.model, alignment.live, alignment.store
    assert other is not None
    result = [view[index] for index in ids]
    with torch.no_grad():
        q, reference = distributions(other, result), naive_logprobs(other, result)
    p = distributions(model, result)
    inputs = {
        "reference": reference,
        "scores": torch.tensor(np.array(view.scores)[ids]).double(),
        "collision": (p.detach().exp() ** 2).sum(-1).log(),
        "divergence": (q.exp() * (q - p)).sum(-1),
        "noise": torch.tensor(generator(SEED, "noise", number).random(len(ids))),
        "state": {},
    }
    if isinstance(view, Unpaired):
        assert alignment.mismatched is not None
        partner = alignment.mismatched.comparisons.partner
        crossed = [Comparison(view[index].prompt, view[int(partner[index])].responses) for index in ids]
        inputs["labels"] = torch.tensor([index % 2 == 0 for index in ids])
        with torch.no_grad():
            inputs["mismatched"] = (naive_logprobs(model, crossed) - naive_logprobs(other, crossed)).total[:, 0]
    values = loss_of(row)(naive_logprobs(model, result), **{name: inputs[name] for name in row.reads})
    return (values[0] if "state" in row.reads else values).mean()
