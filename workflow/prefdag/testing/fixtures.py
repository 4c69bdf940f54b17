"""Fixtures of golden cases: their numbers as `LogProbs` and as the other inputs of a loss, in float64."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from prefdag.models.logprobs import LogProbs, token_logprobs

Fixture = dict[str, Any]
Leaves = dict[str, Tensor | list[Tensor]]


@dataclass(frozen=True)
class LossInputs:
    """A fixture as a loss takes it: log-probs, the other inputs by keyword, and the leaves."""

    policy: LogProbs
    leaves: Leaves
    inputs: dict[str, Any] = field(default_factory=dict)


def leaf(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def fixed(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of_sums(sums: Tensor, counts: Tensor) -> LogProbs:
    """Make `LogProbs` of sums and counts, each [B, K]: the first token takes the whole sum, so that it stays exact."""
    counts = counts.flatten()
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    tokens = torch.zeros(len(owner), dtype=sums.dtype).index_add(0, counts.cumsum(0) - counts, sums.flatten())
    return LogProbs(tokens, owner, (sums.shape[0], sums.shape[1]))


def of_lists(chosen: list[Tensor], rejected: list[Tensor]) -> LogProbs:
    """`LogProbs` of pairs whose tokens are given response by response."""
    both = [tokens for pair in zip(chosen, rejected, strict=True) for tokens in pair]
    owner = torch.repeat_interleave(torch.arange(len(both)), torch.tensor([len(tokens) for tokens in both]))
    return LogProbs(torch.cat(both), owner, (len(chosen), 2))


def pair(fixture: Fixture) -> LossInputs:
    """Summed log-probs of pairs, with counts and scores."""
    leaves = {side: leaf(fixture[side]) for side in ("pc", "pr")}
    counts = torch.tensor([fixture["nc"], fixture["nr"]], dtype=torch.long).T
    inputs: dict[str, Any] = {"reference": of_sums(fixed([fixture["rc"], fixture["rr"]]).T, counts)}
    if "sc" in fixture:
        inputs["scores"] = fixed([fixture["sc"], fixture["sr"]]).T
    return LossInputs(of_sums(torch.stack(list(leaves.values()), 1), counts), dict(leaves), inputs)


def tok(fixture: Fixture) -> LossInputs:
    """Log-probs of pairs token by token."""
    leaves = {side: [leaf(tokens) for tokens in fixture[side]] for side in ("pc", "pr")}
    reference = of_lists(*([fixed(tokens) for tokens in fixture[side]] for side in ("rc", "rr")))
    return LossInputs(of_lists(leaves["pc"], leaves["pr"]), dict(leaves), {"reference": reference})


def kwise(fixture: Fixture) -> LossInputs:
    """Summed log-probs of K responses and their scores."""
    sums = leaf(fixture["S"])
    ones = torch.ones(sums.shape, dtype=torch.long)
    inputs = {"reference": of_sums(fixed(fixture["R"]), ones), "scores": fixed(fixture["scores"])}
    return LossInputs(of_sums(sums, ones), {"S": sums}, inputs)


def logits(fixture: Fixture) -> LossInputs:
    """Logits of both models, chosen rows first; responses begin at `prompt_len`."""
    policy_logits, reference_logits = leaf(fixture["policy_logits"]), fixed(fixture["ref_logits"])
    counted = Counted.of(fixture, fixture["prompt_len"])
    now, then = (counted.predictors(values).log_softmax(-1) for values in (policy_logits, reference_logits))
    inputs = {
        "reference": counted.logprobs(reference_logits),
        "collision": (2 * now.detach()).logsumexp(-1),
        "divergence": (then.exp() * (then - now)).sum(-1),
    }
    return LossInputs(counted.logprobs(policy_logits), {"policy_logits": policy_logits}, inputs)


@dataclass(frozen=True)
class Counted:
    """Which tokens of a `logits` fixture count: row, place, target and owner of each, [T], pair by pair."""

    row: Tensor
    place: Tensor
    target: Tensor
    owner: Tensor
    num_pairs: int

    @classmethod
    def of(cls, fixture: Fixture, begin: int) -> Self:
        """Of every row, chosen rows first, the tokens from `begin` to its end."""
        ids, ends = torch.tensor(fixture["input_ids"]), torch.tensor(fixture["attention_mask"]).sum(1)
        rows = torch.arange(len(ids)).view(2, -1).T.flatten()
        lengths = ends[rows] - begin
        owner = torch.repeat_interleave(torch.arange(len(ids)), lengths)
        place = torch.cat([torch.arange(begin, end) for end in ends[rows].tolist()])
        return cls(rows[owner], place, ids[rows[owner], place], owner, len(ids) // 2)

    def predictors(self, values: Tensor) -> Tensor:
        return values[self.row, self.place - 1]

    def logprobs(self, values: Tensor) -> LogProbs:
        tokens = token_logprobs(self.predictors(values), self.target, lambda states: states)
        return LogProbs(tokens, self.owner, (self.num_pairs, 2))


def singles(fixture: Fixture, kl: str) -> LossInputs:
    """A fixture of pairs as 2B labelled responses, chosen ones first, by their sums.

    Mismatched answers are swapped where their mean log-ratio has not the sign that `kl` opens with, "pos" or "neg".
    """
    sides = {side: [sum(v) if isinstance(v, list) else v for v in fixture[side]] for side in ("pc", "pr", "rc", "rr")}
    leaves = {side: leaf(sides[side]) for side in ("pc", "pr")}
    counts = torch.tensor([*fixture["nc"], *fixture["nr"]], dtype=torch.long)[:, None]
    inputs: dict[str, Any] = {
        "reference": of_sums(fixed([*sides["rc"], *sides["rr"]])[:, None], counts),
        "labels": torch.arange(len(counts)) < len(counts) // 2,
        "state": {},
    }
    if "kp" in fixture:
        ratios = fixed([sum(now) - sum(then) for now, then in zip(fixture["kp"], fixture["kr"], strict=True)])
        swapped = ratios.mean() * {"pos": 1, "neg": -1}.get(kl[:3], 0) < 0
        inputs["mismatched"] = (-ratios if swapped else ratios).repeat(2)
    return LossInputs(of_sums(torch.cat(list(leaves.values()))[:, None], counts), dict(leaves), inputs)


READERS: dict[str, Callable[[Fixture], LossInputs]] = {"pair": pair, "tok": tok, "kwise": kwise, "logits": logits}
