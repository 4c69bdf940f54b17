"""Golden cases of losses: evaluate another tool's method and hyper-parameters with our losses.

A file of cases holds `fixtures` by group and name, and `cases` that each name a method, a fixture and hyper-parameters.
A method returns values and the leaves whose gradients are reported, under the fixture's names.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from prefdag.config.objectives import OBJECTIVES, Objective, objective
from prefdag.errors import UserError
from prefdag.losses.batchwise import dpo_of_selected, moving
from prefdag.losses.functional import chosen_nll
from prefdag.losses.registry import loss_of, reference_free
from prefdag.losses.reward_model import bradley_terry, each, pair_sum, plackett_luce
from prefdag.models.logprobs import margin
from prefdag.schema import Section, read_json
from prefdag.testing.fixtures import READERS, Counted, Fixture, Leaves, fixed, leaf, logits, pair, singles
from prefdag.testing.policy_cases import MASKED, POLICY_METHODS, Result

Values = tuple[Tensor, Leaves]
# beta-DPO's running mean and deviation of the gap before the step, and its draw, as its peer was run.
MOMENTS, MOMENTUM, DRAW = {"mean": 1.5, "std": 4.0}, 0.9, 7
# Our names of peers' hyper-parameters, for all methods; and those that only select a branch of a peer's function.
NAMES = {"eps": "label_smoothing", "w_d": "lambda_d", "w_u": "lambda_u", "kind": "loss", "ld_alpha": "alpha"}
WITHOUT_FIXTURE = "none"
BRANCHES = {"norm", "ipo", "ref", "kl"}


class Case(Section):
    """One case; `inputs` opens with its fixture's group, `reduction` says what the loss is a mean of."""

    model_config = ConfigDict(extra="ignore")
    id: str
    method: str
    fixture: str
    fixture_kind: str | None = None
    inputs: str
    reduction: str
    hp: dict[str, Any] = Field(default_factory=dict)
    expected: dict[str, Any] = Field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.fixture_kind or re.split(r"\W", self.inputs)[0]


class Cases(Section):
    """A file of cases."""

    model_config = ConfigDict(extra="ignore")
    fixtures: dict[str, dict[str, dict[str, Any]]]
    cases: list[Case]


Method = Callable[[Case, Fixture], Values]


def read_cases(path: Path) -> Cases:
    """Read a file of cases. Raises `UserError` for any other file."""
    return Cases.parse(read_json(path), str(path))


def evaluate(case: Case, fixtures: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return {"id", "loss", "grad"}, and a policy-optimization method's further numbers by their names.

    Gradients are those of the sum if the loss is a list, of the mean if it is one number.

    Raises:
        UserError: an unknown method or fixture, or a fixture that lacks what the method reads.
    """
    known = {*METHODS, *POLICY_METHODS, *OBJECTIVES}
    if case.method not in known and ".py:" not in case.method:
        raise UserError(
            f"case {case.id}: method: expected <file>.py:<function> or one of {', '.join(sorted(known))}, got "
            f"{case.method!r}"
        )
    if case.group != WITHOUT_FIXTURE and case.fixture not in fixtures.get(case.group, {}):
        raise UserError(f"case {case.id}: fixture: the file has no {case.group} fixture {case.fixture!r}")
    try:
        result = _result(case, fixtures.get(case.group, {}).get(case.fixture, {}))
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"case {case.id}: {case.method} reads {error}, which the case or its fixture lacks") from None
    except (TypeError, ValueError, RuntimeError, IndexError, AssertionError) as error:
        raise UserError(f"case {case.id}: malformed: {' '.join(str(error).split())}") from None
    loss, others = result.values["loss"], {name: plain(value) for name, value in result.values.items()}
    gradients = _gradients(loss.sum(), result.leaves) if result.leaves else {}
    return {"id": case.id, "loss": others.pop("loss"), "grad": gradients, **others}


def _result(case: Case, fixture: Fixture) -> Result:
    """Evaluate a case; a preference loss is a list or a mean, as the case's `reduction` says."""
    if case.method in POLICY_METHODS:
        return POLICY_METHODS[case.method]({**case.hp, MASKED: MASKED in case.reduction}, fixture)
    method = METHODS.get(case.method) or own_name(case.method)
    values, leaves = method(case, fixture)
    listed = case.reduction.startswith(("per_", "tensor"))
    return Result({"loss": values if listed else values.mean()}, leaves)


def _gradients(loss: Tensor, leaves: Leaves) -> dict[str, Any]:
    """Return the gradient by every leaf that the loss depends on, in the leaf's shape."""
    result = {}
    for name, values in leaves.items():
        listed = values if isinstance(values, list) else [values]
        gradients = torch.autograd.grad(loss, listed, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in gradients):
            result[name] = [plain(gradient) for gradient in gradients]
            result[name] = result[name] if isinstance(values, list) else result[name][0]
    return result


def plain(values: Any) -> Any:
    """Convert to JSON numbers, and values that are not finite to "nan", "inf" or "-inf"."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [plain(value) for value in values]
    return values if values is None or abs(values) < float("inf") else str(values)


def own_name(method: str) -> Method:
    """Map a method of the registry, or a user's <file>.py:<function>, to itself, with its own options."""

    def values(case: Case, fixture: Fixture) -> Values:
        return _evaluated(objective({**case.hp, "method": method}, f"case {case.id}", "hp"), case, fixture)

    return values


def registered(method: str, renamed: Callable[[dict[str, Any]], dict[str, Any]] = dict, **options: Any) -> Method:
    """Map a peer's method to our `method`: rename its hyper-parameters and add these options."""

    def values(case: Case, fixture: Fixture) -> Values:
        hyper = {NAMES.get(key, key): value for key, value in renamed(case.hp).items() if key not in BRANCHES}
        return _evaluated(objective({**options, **hyper, "method": method}, f"case {case.id}", "hp"), case, fixture)

    return values


def _evaluated(entry: Objective, case: Case, fixture: Fixture) -> Values:
    single = entry.responses == "one"
    example = singles(fixture, str(case.hp.get("kl", ""))) if single else READERS[case.group](fixture)
    result = loss_of(entry)(example.policy, **{name: example.inputs[name] for name in entry.reads})
    return (result[0] if "state" in entry.reads else result), example.leaves


def beta_dpo(case: Case, fixture: Fixture) -> Values:
    """Evaluate beta-DPO on the pairs that its peer selects: the case's `mask`, or the peer's random sample."""
    example, hp = pair(fixture), case.hp
    gap = margin((example.policy - example.inputs["reference"]).total)
    after = moving(gap.detach(), MOMENTS, MOMENTUM)
    if "mask" in case.expected:
        mask = fixed(case.expected["mask"])
    else:
        weights = torch.exp(-0.5 * ((gap.detach() - after["mean"]) / after["std"]) ** 2)
        generator = torch.Generator().manual_seed(DRAW)
        places = torch.multinomial(weights, int(len(gap) * (1 - hp["mode_weight"])), generator=generator)
        mask = torch.zeros_like(weights).index_fill(0, places, 1.0)
    return dpo_of_selected(gap, mask, after["mean"], hp["beta"], hp["a"]), example.leaves


def token_unlikelihood(case: Case, fixture: Fixture) -> Values:
    """Evaluate the rejected response's term alone."""
    example = READERS[case.group](fixture)
    return case.hp.get("alpha", 1.0) * reference_free.token_unlikelihood(example.policy)[:, 1], example.leaves


def batch_logps(case: Case, fixture: Fixture) -> Values:
    example = logits(fixture)
    return example.policy.total.T.flatten(), example.leaves


def orpo_trl_batch(case: Case, fixture: Fixture) -> Values:
    """Evaluate the odds ratio of responses and the likelihood of prompt and chosen response together."""
    example = logits(fixture)
    policy_logits = example.leaves["policy_logits"]
    assert isinstance(policy_logits, Tensor)
    whole = Counted.of(fixture, 1).logprobs(policy_logits)
    return reference_free.orpo(example.policy, lam=case.hp["beta"], nll="none") + chosen_nll(
        whole, "per_token"
    ), example.leaves


def reward_model(loss: Callable[..., Tensor], *inputs: str) -> Method:
    """Evaluate a loss of the rewards of pairs and of the fixture's `inputs`."""

    def values(case: Case, fixture: Fixture) -> Values:
        leaves = {side: leaf(fixture[side]) for side in ("r_c", "r_r")}
        example = {name: fixed(fixture[name])[:, None] for name in inputs}
        hp = {NAMES.get(key, key): value for key, value in case.hp.items()}
        return loss(torch.stack(list(leaves.values()), 1), **example, **hp), dict(leaves)

    return values


def centred(values: Tensor, c: float) -> Tensor:
    return bradley_terry(values) + c * pair_sum(values)


def squared(values: Tensor, c: float) -> Tensor:
    return bradley_terry(values) + c * each(values)


def rm_plackett_luce(case: Case, fixture: Fixture) -> Values:
    scores = leaf(fixture["scores"])
    return plackett_luce(scores), {"scores": scores}


def _ratio(hp: dict[str, Any]) -> dict[str, Any]:
    """Convert SimPO's gamma to gamma / beta, unless it is stated so."""
    if "gamma" not in hp:
        return hp
    return {**{key: value for key, value in hp.items() if key != "gamma"}, "gamma_beta_ratio": hp["gamma"] / hp["beta"]}


def _called(name: str, ours: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Rename one hyper-parameter of a peer."""
    return lambda hp: {ours if key == name else key: value for key, value in hp.items()}


def _without_alpha(hp: dict[str, Any]) -> dict[str, Any]:
    """Drop alpha: the peer's one function for TDPO1 and TDPO2 takes it, and TDPO1 does not read it."""
    return {key: value for key, value in hp.items() if key != "alpha"}


# Peers' methods whose options go by our names, or by those of `NAMES`.
SAME = (
    *("dpo", "cdpo", "dpo_norm", "hinge", "odpo", "rebel", "exo_pair", "discopop", "caldpo", "sppo_hard", "dpop"),
    *("nca_pair", "biased_nca", "apo_zero", "apo_down", "aot", "aot_unpaired", "ld_dpo", "wpo", "tdpo2", "alphapo"),
    *("slic", "cpo", "cpl", "cpl_ref", "kto", "bco", "infonca_k", "nca_k"),
)
METHODS: dict[str, Method] = {
    **{method: registered(method) for method in SAME},
    "robust_dpo": registered("robust"),
    "ipo_sum": registered("ipo", logprob="summed"),
    "ipo_mean": registered("ipo", logprob="averaged"),
    "ipo_mean_tok": registered("ipo", _called("tau", "beta"), logprob="averaged"),
    "hinge_noref": registered("cpo", cpo_alpha=0.0, loss="hinge"),
    "cpo_pref": registered("cpo", cpo_alpha=0.0),
    "slic_cal": registered("slic", lam=0.0),
    "simpo": registered("simpo", _ratio),
    "simpo_hinge": registered("simpo", _ratio, loss="hinge"),
    "orpo": registered("orpo", _called("beta", "lam")),
    "orpo_or": registered("orpo", _called("beta", "lam"), nll="none"),
    "orpo_trl_batch": orpo_trl_batch,
    "rpo": registered("rpo", nll="per_token"),
    "rpo_seqmean": registered("rpo", nll="per_response"),
    "exo_authors": registered("exo_pair", target="authors"),
    "tdpo1": registered("tdpo1", _without_alpha),
    "plackett_luce_dpo": registered("plackett_luce"),
    "multi_negative_dpo": registered("multi_negative"),
    "beta_dpo": beta_dpo,
    "unlikelihood_tokens": token_unlikelihood,
    "batch_logps": batch_logps,
    "rm_bt": reward_model(bradley_terry),
    "rm_margin": reward_model(bradley_terry, "margin"),
    "rm_center": reward_model(centred),
    "rm_l2_aa": reward_model(squared),
    "rm_plackett_luce": rm_plackett_luce,
}
