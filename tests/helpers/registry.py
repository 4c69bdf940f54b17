"""What the proofs about losses share: a row for every loss of the registry, and random inputs of any of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prefdag.config.objectives import OBJECTIVES, Objective, objective
from prefdag.losses.registry import loss_of
from prefdag.models.logprobs import LogProbs
from prefdag.testing.fixtures import of_sums


def named(row: dict[str, Any]) -> str:
    return "-".join(str(value) for value in row.values() if isinstance(value, str))


# Every loss, and every branch of those that have some; options that float32 cannot hold.
ROWS: list[dict[str, Any]] = [
    {"method": "dpo", "beta": 0.13},
    {"method": "cdpo", "beta": 0.13, "label_smoothing": 0.17},
    {"method": "robust", "beta": 0.13, "label_smoothing": 0.17},
    {"method": "dpo_norm", "beta": 1.7},
    {"method": "ipo", "beta": 0.13, "logprob": "summed"},
    {"method": "ipo", "beta": 0.13, "logprob": "averaged"},
    {"method": "hinge", "beta": 0.13},
    {"method": "odpo", "beta": 0.13, "alpha": 0.7},
    {"method": "rebel", "eta": 1.3},
    {"method": "exo_pair", "beta": 0.13, "label_smoothing": 0.17},
    {"method": "exo_pair", "beta": 0.13, "target": "authors"},
    {"method": "discopop", "beta": 0.13, "tau": 0.07},
    {"method": "f_dpo", "beta": 0.13, "divergence": "forward_kl"},
    {"method": "f_dpo", "beta": 0.13, "divergence": "jensen_shannon"},
    {"method": "f_dpo", "beta": 0.13, "divergence": "alpha", "alpha": 0.3},
    {"method": "log_ratio", "beta": 0.13},
    {"method": "caldpo", "beta": 0.13},
    {"method": "sppo_hard", "beta": 0.13},
    {"method": "dpop", "beta": 0.13, "lam": 5.3},
    {"method": "rpo", "beta": 0.13, "w_dpo": 0.9, "w_nll": 1.1},
    {"method": "rpo", "beta": 0.13, "w_dpo": 0.9, "w_nll": 1.1, "nll": "per_token"},
    {"method": "nca_pair", "beta": 0.13},
    {"method": "biased_nca", "beta": 0.13},
    {"method": "apo_zero", "beta": 0.13},
    {"method": "apo_down", "beta": 0.13},
    {"method": "aot", "beta": 0.13, "label_smoothing": 0.17},
    {"method": "aot_unpaired", "beta": 0.13, "label_smoothing": 0.17},
    {"method": "beta_dpo", "beta": 0.13, "a": 0.7, "mode_weight": 0.3, "momentum": 0.6},
    {"method": "ld_dpo", "beta": 0.13, "alpha": 0.3},
    {"method": "wpo", "beta": 0.13, "label_smoothing": 0.17},
    {"method": "tdpo1", "beta": 0.13},
    {"method": "tdpo2", "beta": 0.13, "alpha": 0.7},
    {"method": "simpo", "beta": 1.7, "gamma_beta_ratio": 0.3, "label_smoothing": 0.17},
    {"method": "simpo", "beta": 1.7, "gamma_beta_ratio": 0.3, "loss": "hinge"},
    {"method": "alphapo", "beta": 1.7, "alpha": 0.3, "gamma": 0.1},
    {"method": "orpo", "lam": 0.13},
    {"method": "orpo", "lam": 0.13, "nll": "per_token"},
    {"method": "orpo", "lam": 0.13, "nll": "none"},
    {"method": "cpo", "beta": 0.13, "cpo_alpha": 1.1, "label_smoothing": 0.17},
    {"method": "cpo", "beta": 0.13, "cpo_alpha": 1.1, "loss": "hinge", "nll": "per_response"},
    {"method": "slic", "delta": 1.3, "lam": 0.13},
    {"method": "preferred_ft"},
    {"method": "unlikelihood", "alpha": 0.3},
    {"method": "unlikelihood_tokens", "alpha": 0.3},
    {"method": "cpl", "alpha": 0.13, "bias": 0.3, "discount": 0.9},
    {"method": "cpl_ref", "alpha": 0.13, "bias": 0.3, "discount": 0.9},
    {"method": "kto", "beta": 0.13, "lambda_d": 0.9, "lambda_u": 1.33},
    {"method": "bco", "beta": 0.13},
    {"method": "apo_zero_unpaired", "beta": 0.13},
    {"method": "plackett_luce", "beta": 0.13},
    {"method": "multi_negative", "beta": 0.13},
    {"method": "all_pairs", "beta": 0.13},
    {"method": "infonca_k", "beta": 0.13, "alpha": 0.7, "first_bonus": 0.1},
    {"method": "nca_k", "beta": 0.13, "alpha": 0.7, "first_bonus": 0.1},
]
LISTED = [named(row) for row in ROWS]  # the tests' tables of properties are complete for these
# A loss without a row above is tested at its defaults.
ROWS += [{"method": method} for method in OBJECTIVES if method not in {row["method"] for row in ROWS}]


def entry_of_row(row: dict[str, Any]) -> Objective:
    return objective(row, "tests", "row")


@dataclass(frozen=True)
class Example:
    """Inputs of a loss: the policy and, by name, everything that a loss may read."""

    policy: LogProbs
    inputs: dict[str, Any] = field(default_factory=dict)

    def loss(self, **row: Any) -> Tensor:
        """The row's values, [B]; of a loss with a state, without the next one."""
        entry = entry_of_row(row)
        result = loss_of(entry)(self.policy, **{name: self.inputs[name] for name in entry.reads})
        return result[0] if "state" in entry.reads else result

    def with_(self, policy: LogProbs | None = None, **inputs: Any) -> "Example":
        return Example(policy or self.policy, {**self.inputs, **inputs})

    def of(self, comparisons: Sequence[int]) -> "Example":
        """Only these comparisons, in this order."""
        size = self.policy.shape[1]
        counts = self.policy.count.flatten().int().tolist()
        responses = [comparison * size + response for comparison in comparisons for response in range(size)]

        def tokens(values: Tensor) -> Tensor:
            parts = values.split(counts)
            return torch.cat([parts[response] for response in responses])

        def logprobs(of: LogProbs) -> LogProbs:
            lengths = torch.tensor([counts[response] for response in responses])
            owner = torch.repeat_interleave(torch.arange(len(responses)), lengths)
            return LogProbs(tokens(of.tokens), owner, (len(comparisons), size))

        inputs = dict(self.inputs)
        for name, value in inputs.items():
            if isinstance(value, LogProbs):
                inputs[name] = logprobs(value)
            elif isinstance(value, Tensor):
                whole = name in ("collision", "divergence")
                inputs[name] = tokens(value) if whole else value[list(comparisons)]
        return Example(logprobs(self.policy), inputs)


def shifted(of: LogProbs, values: Tensor | float) -> LogProbs:
    return replace(of, tokens=of.tokens + values)


def first_tokens(of: LogProbs) -> Tensor:
    """1 at the first token of every response, 0 elsewhere: adding it raises every sum by 1. [T]"""
    return (of.position == 0).to(of.tokens.dtype)


def random_example(
    num_responses: int = 2, *, num: int = 6, seed: int = 0, longest: int = 7, spread: float = 1.0, dtype: Any = None
) -> Example:
    """Random log-probs of `num` comparisons; the first has responses of one token. `spread` moves policy and reference
    apart.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64).to(dtype or torch.float64)

    counts = torch.randint(1, longest + 1, (num, num_responses), generator=random)
    counts[0] = 1
    owner = torch.repeat_interleave(torch.arange(num * num_responses), counts.flatten())
    size = len(owner)
    policy = (-4 * spread * uniform(size) - 0.01).requires_grad_()
    reference = -4 * spread * uniform(size) - 0.01
    shape = (num, num_responses)
    return Example(
        LogProbs(policy, owner, shape),
        {
            "reference": LogProbs(reference, owner, shape),
            "scores": (6 * uniform(*shape) - 3).sort(dim=1, descending=True).values,
            "labels": torch.arange(num) % 2 == 0,
            "mismatched": 2 * uniform(num) - 0.5,
            "collision": -2 * uniform(size),
            "divergence": uniform(size),
            "noise": uniform(num),
            "state": {},
        },
    )


def example_for(row: dict[str, Any], **settings: Any) -> Example:
    """The same, with as many responses as the row's loss takes."""
    return random_example({"one": 1, "two": 2, "many": 3}[entry_of_row(row).responses], **settings)


def pair(chosen: float, rejected: float, num_chosen: int = 2, num_rejected: int = 4) -> LogProbs:
    """One pair with these summed log-probs, in float64, with a gradient for every token."""
    sums = torch.tensor([[chosen, rejected]], dtype=torch.float64)
    logprobs = of_sums(sums, torch.tensor([[num_chosen, num_rejected]]))
    return replace(logprobs, tokens=logprobs.tokens.requires_grad_())
