"""Every loss of the registry is trained as its definition says, however a step is packed: values and every gradient."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import distance, measured, stored, tiny
from loss_family import NUM, ROWS, aligned, batch_of, plain_loss, store_of
from prefdag.config.objectives import OBJECTIVES, objective
from prefdag.config.sections.training import Training
from prefdag.data.views import Unpaired, objective_view
from prefdag.errors import UserError
from prefdag.losses.registry import LOSSES
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.naive import float64_norms
from prefdag.models.ops.device import autocast
from prefdag.models.packing import micro_batches, pack, step_members
from prefdag.training import gradient_caching
from prefdag.training import preference_task as module
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import train
from prefdag.training.mismatched import MismatchedRatios
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.records import Step

WHOLE = ["aot", "aot_unpaired", "bco", "beta_dpo", "cpo", "kto", "orpo per_token", "rpo per_token"]
ORDERS = [[8, 2, 11, 5, 0, 9, 4], [0, 2, 4, 5, 8, 9, 11], [11, 0, 9, 2, 8, 4, 5]]
BUDGETS = [1, 20, 35]  # padded tokens: a comparison at a time, two or three, most of a step
ONE_PASS = 10_000
STATE = {"bco": {"mean": 0.3, "count": 5.0}, "beta_dpo": {"mean": 0.2, "std": 1.5}}


@pytest.fixture(autouse=True)
def _float64_norms() -> Iterator[None]:
    with float64_norms():
        yield


def taken(alignment: PreferenceTask, ids: list[int], budget: int, state: dict[str, float]) -> dict[str, torch.Tensor]:
    """Loss, state, metrics and gradients of one step."""
    alignment.model.zero_grad()
    outcome = alignment.accumulate(batch_of(alignment.store, ids, budget), state)
    values = {"loss": outcome.loss} | {f"state {name}": value for name, value in outcome.state.items()}
    values |= outcome.metrics
    gradients = {name: parameter.grad.clone() for name, parameter in alignment.model.named_parameters()}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    relative = {name: torch.tensor(value).double() / max(1.0, abs(value)) for name, value in values.items()}
    return relative | {f"gradient of {name}": gradient / scale for name, gradient in gradients.items()}


def test_the_losses_of_whole_steps_are_known(tmp_path: Path) -> None:
    names = [name for name in ROWS if PreferenceTask(objective(ROWS[name], "t", name), None, None).needs_whole_step]
    assert sorted(names) == WHOLE


@pytest.mark.parametrize("order", range(len(ORDERS)))
@pytest.mark.parametrize("name", WHOLE)
def test_a_step_seen_in_parts_is_the_step_seen_at_once(name: str, order: int, tmp_path: Path) -> None:
    """Gradient caching: loss, state, metrics and gradients of every packing within 1e-12 of one micro-batch's."""
    one, state = aligned(name, tmp_path), STATE.get(name, {})
    expected = taken(one, ORDERS[order], ONE_PASS, state)
    for budget in BUDGETS:
        assert len(list(micro_batches(ORDERS[order], one.store.lengths(), budget))) > 1
        assert distance(taken(one, ORDERS[order], budget, state), expected) < 1e-12


@pytest.mark.parametrize("name", WHOLE)
def test_parts_that_do_not_meet_are_caught(name: str, tmp_path: Path) -> None:
    """The broken twin: each micro-batch is taken for the step."""
    right, twin, state = aligned(name, tmp_path), aligned(name, tmp_path), STATE.get(name, {})
    twin.__dict__["needs_whole_step"] = False
    expected = {key: value for key, value in taken(right, ORDERS[0], 35, state).items() if "state" not in key}
    broken = {key: value for key, value in taken(twin, ORDERS[0], 35, {}).items() if "state" not in key}
    assert distance(broken, expected) > 1e-4


OWN = """
def coupled(policy, reference, divergence, collision, scores, noise):
    ratio = (policy - reference).total
    gap = (ratio + policy.summed(divergence) * policy.summed(collision.exp()) + scores)[:, 0]
    return gap * gap.flip(0) + noise * ratio[:, 1] ** 2
coupled.scope = "step"
"""


def test_an_own_loss_of_whole_steps_that_reads_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The divergence carries gradient through both passes too; no loss of the registry asks for that in a step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    one = replace(aligned("tdpo2", tmp_path), objective=objective({"method": "own.py:coupled"}, "tests", "own"))
    expected = taken(one, ORDERS[0], ONE_PASS, {})
    for budget in BUDGETS:
        assert distance(taken(one, ORDERS[0], budget, {}), expected) < 1e-12
    monkeypatch.setattr(gradient_caching, "_differentiable", lambda stats: [stats.policy.tokens])
    assert distance(taken(one, ORDERS[0], BUDGETS[0], {}), expected) > 1e-4


@pytest.mark.parametrize("name", ["aot", "kto", "bco", "rpo per_token", "dpo", "tdpo2"])
def test_the_order_of_a_step_does_not_matter(name: str, tmp_path: Path) -> None:
    """But for beta-DPO, whose noise goes to the first, the second, ... comparison of the step."""
    one, state = aligned(name, tmp_path), STATE.get(name, {})
    expected = taken(one, ORDERS[0], 35, state)
    for order in ORDERS[1:]:
        assert distance(taken(one, order, 40, state), expected) < 1e-12


@pytest.mark.parametrize("name", [*WHOLE, "dpo", "wpo"])
def test_how_often_the_policy_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each micro-batch; twice where the step's comparisons meet and it takes more than one."""
    one, passes, right = aligned(name, tmp_path), [], module.token_stats
    monkeypatch.setattr(module, "token_stats", lambda *args: passes.append(1) or right(*args))
    for budget in (1, ONE_PASS):
        passes.clear()
        taken(one, ORDERS[0], budget, STATE.get(name, {}))
        parts = len(list(micro_batches(ORDERS[0], one.store.lengths(), budget)))
        assert len(passes) == parts * (2 if name in WHOLE and parts > 1 else 1)


def settings(**values: Any) -> Training:
    chosen = {"batch_size": 5, "learning_rate": 1e-2, "max_steps": 1, "max_grad_norm": 1e9, "tokens_per_batch": 60}
    return Training(**{**chosen, **values})


def test_every_loss_has_a_row() -> None:
    assert {row["method"] for row in ROWS.values()} == set(OBJECTIVES)


@pytest.mark.parametrize("name", ROWS)
def test_a_training_step_equals_the_plain_path(name: str, tmp_path: Path) -> None:
    """Loss and gradient of a real step in several micro-batches, by padded rows and whole distributions: 1e-9."""
    one = aligned(name, tmp_path)
    ids = step_members(0, len(one.store), 5, 0).tolist()
    plain = measured(one.model, lambda: {"loss": plain_loss(one, ids, 0)})
    one.model.zero_grad()
    one.accumulate(batch_of(one.store, ids, 60), {})
    for key, parameter in one.model.named_parameters():
        assert torch.allclose(parameter.grad, plain[f"gradient of {key}"], rtol=1e-9, atol=1e-9)
    one.model.zero_grad()
    (step,) = train(one.model, one.store, settings(), one)
    assert math.isfinite(step.loss) and step.loss == pytest.approx(plain["loss"].item(), rel=1e-9, abs=1e-9)
    norm = math.sqrt(sum((value**2).sum().item() for key, value in plain.items() if key != "loss"))
    assert step.grad_norm == pytest.approx(norm, rel=1e-9) and norm > 1e-6


def test_a_loss_whose_comparisons_do_not_meet_is_a_plain_loop_bit_for_bit(tmp_path: Path) -> None:
    """float32: what every micro-batch's losses, summed over the step's count, accumulate."""
    one = aligned("dpo", tmp_path, tiny(dtype=torch.float32))
    exact = one.reference

    def reference(ids: list[int], batch: Any) -> LogProbs:
        return replace(exact(ids, batch), tokens=exact(ids, batch).tokens.float())

    one = replace(one, reference=reference)
    batch = batch_of(one.store, ORDERS[0], 60)
    outcome, loss = one.accumulate(batch, {}), 0.0
    gradients = [parameter.grad.clone() for parameter in one.model.parameters()]
    one.model.zero_grad()
    for ids, segments in batch.micro_batches():
        with autocast(segments.owner.device):
            part = LOSSES["dpo"](logprobs(one.model, segments), reference(ids, segments), beta=0.1).sum() / 7
        part.backward()
        loss += part.item()
    assert outcome.loss == loss and outcome.state == {}
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, one.model.parameters(), strict=True))


def steps_of(
    name: str, folder: Path, checkpoint: Checkpoint | None = None, **values: Any
) -> tuple[PreferenceTask, Any]:
    one = aligned(name, folder)
    return one, train(one.model, one.store, settings(max_steps=6, epochs=9, **values), one, checkpoint)


@pytest.mark.parametrize("name", STATE)
def test_adaptive_state_does_not_depend_on_packing(name: str, tmp_path: Path) -> None:
    runs = [list(steps_of(name, tmp_path, tokens_per_batch=budget)[1]) for budget in (1, 60, ONE_PASS)]
    for other in runs[1:]:
        for step, expected in zip(other, runs[0], strict=True):
            assert step.state == pytest.approx(expected.state, rel=1e-9) and step.state
    assert runs[0][0].state != runs[0][-1].state


class Forgetful(Checkpoint):
    """The broken twin: the loss's state is lost, as by a process that keeps it to itself."""

    def load(self) -> dict[str, Any] | None:
        state = super().load()
        state["history"][-1]["state"] = {}
        return state


@pytest.mark.parametrize("name", STATE)
def test_adaptive_state_is_resumed_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Killed after step 3, which was saved: the records, their state and the weights of an undisturbed training."""
    whole, steps = steps_of(name, tmp_path)
    expected: list[Step] = list(steps)
    _, steps = steps_of(name, tmp_path, Checkpoint(tmp_path / "resume", seconds_between=0))
    assert list(islice(steps, 3)) == expected[:3]
    steps.close()
    saved = (tmp_path / "resume/state.pt").read_bytes()
    resumed, steps = steps_of(name, tmp_path, Checkpoint(tmp_path / "resume", seconds_between=0))
    assert list(steps) == expected and expected[-1].values()["state_mean"] == expected[-1].state["mean"]
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "resume/state.pt").write_bytes(saved)
    _, steps = steps_of(name, tmp_path, Forgetful(tmp_path / "resume"))
    assert list(steps)[3:] != expected[3:]


def test_ktos_start_is_the_policy_before_any_state_is_loaded(tmp_path: Path) -> None:
    """Every process measures the start of the mismatched log-ratios again: z is the same."""

    def steps(checkpoint: Checkpoint | None = None) -> Iterator[Step]:
        one = aligned("kto", tmp_path)
        mismatched = MismatchedRatios(one.model, one.store, 0, 60)
        assert mismatched(range(len(one.store))).abs().max() < 1e-12
        chosen = settings(max_steps=6, epochs=9, learning_rate=0.1)
        return train(one.model, one.store, chosen, replace(one, mismatched=mismatched), checkpoint)

    expected = list(steps())
    killed = steps(Checkpoint(tmp_path / "resume", seconds_between=0))
    assert list(islice(killed, 3)) == expected[:3]
    killed.close()
    assert list(steps(Checkpoint(tmp_path / "resume", seconds_between=0))) == expected


@pytest.mark.parametrize("name", [*WHOLE, "dpo"])
def test_held_out_means_are_of_one_step_and_change_nothing(name: str, tmp_path: Path) -> None:
    """The loss of all comparisons together, in any packing; state and weights stay as they were."""
    one, state = aligned(name, tmp_path), dict(STATE.get(name, {}))
    before, weights = copy.deepcopy(state), torch.nn.utils.parameters_to_vector(one.model.parameters()).clone()
    means = one.evaluate(60, state)
    assert state == before and torch.equal(torch.nn.utils.parameters_to_vector(one.model.parameters()), weights)
    assert one.evaluate(1, state) == pytest.approx(means, rel=1e-9) and one.evaluate(60, state) == means
    everything = batch_of(one.store, list(range(len(one.store))), ONE_PASS)
    if name != "beta_dpo":  # whose noise on held-out data is a stream of its own
        assert means["loss"] == pytest.approx(one.accumulate(everything, state).loss, rel=1e-9)


def test_what_is_watched_of_labelled_responses(tmp_path: Path) -> None:
    """Single responses of even number are desirable; a step of those alone has no other side."""
    one = aligned("kto", tmp_path)
    metrics = one.accumulate(batch_of(one.store, ORDERS[0], 40), {}).metrics
    ratio = torch.cat([one.reference.tokens[index] for index in ORDERS[0]])
    assert set(metrics) == {f"{s}_{n}" for s in ("desirable", "undesirable") for n in ("logprob", "logratio")} | {
        "accuracy"
    }
    assert len(ratio) and 0 <= metrics["accuracy"] <= 1
    alone = one.accumulate(batch_of(one.store, [0, 2, 8], 40), {}).metrics
    assert set(alone) == {"desirable_logprob", "desirable_logratio", "accuracy"}
    single = one.accumulate(batch_of(one.store, [2], 40), {}).metrics
    many = [one.accumulate(batch_of(one.store, [index], 40), {}).metrics for index in (0, 8)]
    mean = (single["desirable_logratio"] + sum(each["desirable_logratio"] for each in many)) / 3
    assert alone["desirable_logratio"] == pytest.approx(mean, abs=1e-12)


def test_what_is_watched_of_rankings(tmp_path: Path) -> None:
    """The best response against the mean of the others."""
    one = aligned("plackett_luce", tmp_path)
    metrics = one.accumulate(batch_of(one.store, [3], ONE_PASS), {}).metrics
    ratio = (logprobs(one.model, pack([one.store[3]])) - one.reference([3], pack([one.store[3]]))).total[0]
    assert metrics["chosen_logratio"] == pytest.approx(ratio[0].item(), abs=1e-12)
    assert metrics["margin"] == pytest.approx((ratio[0] - ratio[1:].mean()).item(), abs=1e-12)


def test_a_policy_that_is_not_the_reference_is_refused(tmp_path: Path) -> None:
    """For losses of whole steps and of single responses too."""
    for name in ("aot", "bco"):
        one = replace(aligned(name, tmp_path / name), start=1e-3)
        with pytest.raises(UserError, match=r"step 1: the policy is not the reference \(log-ratios of"):
            one.accumulate(batch_of(one.store, ORDERS[0], 40), {})


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("value", [0.5, -0.5, math.nan])
def test_one_response_that_differs_is_enough_to_refuse(place: int, value: float) -> None:
    """Of three comparisons of two responses each, four tokens long: log-ratio 0.5 in one token is 0.125 per token."""
    owner, tokens = torch.arange(6).repeat_interleave(4), torch.zeros(24, dtype=torch.float64)
    module.check_start(LogProbs(tokens, owner, (3, 2)), 0.1)
    tokens[4 * place + 1] = value
    with pytest.raises(UserError, match="step 1: the policy is not the reference .log-ratios of (0.12|nan) nats"):
        module.check_start(LogProbs(tokens, owner, (3, 2)), 0.1)
    if value == value:
        module.check_start(LogProbs(tokens, owner, (3, 2)), 0.13)


def test_noise_differs_between_steps_and_seeds_and_is_the_same_again(tmp_path: Path) -> None:
    """beta-DPO's selection: a stream for each step and seed, another one for held-out comparisons."""
    one = aligned("beta_dpo", tmp_path)
    stats = one._read(pack([one.store[index] for index in range(5)]))

    def noise(seed: int, step: int | str) -> tuple[float, ...]:
        values = replace(one, seed=seed)._inputs(range(5), stats, {}, step)["noise"]
        return tuple(values.tolist())

    streams = [noise(seed, step) for seed in (0, 1) for step in (0, 1, 2, "held out")]
    assert len(set(streams)) == len({value for stream in streams for value in stream}) / 5 == 8
    assert noise(0, 1) == streams[1] and all(0 <= value < 1 for stream in streams for value in stream)


def test_views_that_a_loss_cannot_be_given(tmp_path: Path) -> None:
    """One sentence each, before anything is trained."""
    four, pairs = store_of("nca_k", tmp_path / "four"), store_of("dpo", tmp_path / "pairs")
    plain = stored(tmp_path / "plain", [pairs[index] for index in range(NUM)])
    turned = stored(tmp_path / "turned", [pairs[index] for index in range(3)], [[1, 0], [0, 1], [0.5, 0.5]])
    single = stored(tmp_path / "single", [Unpaired(pairs)[index] for index in range(3)])
    for store, name, sentence in (
        (
            four,
            "dpo",
            "dpo compares two responses, and each prompt of this store has 4; train it on `dataset: comparisons`",
        ),
        (plain, "rebel", "rebel reads scores, and these comparisons have none; give rows `scores`, or choose"),
        (plain, "nca_k", "nca_k reads scores"),
        (turned, "odpo", "the chosen one has the lower score in source rows 2; put the better response first"),
        (single, "kto", "kto reads labelled responses, and these single ones have no labels"),
        (single, "plackett_luce", "plackett_luce compares two responses or more, and each prompt of this store has 1"),
    ):
        with pytest.raises(UserError, match="(?s)store|plain|turned|single") as error:
            objective_view(store, objective(ROWS[name], "tests", name))
        assert sentence in str(error.value) and "\n" not in str(error.value)
    assert objective_view(turned, objective(ROWS["rebel"], "tests", "rebel")) is turned
    assert objective_view(pairs, objective(ROWS["plackett_luce"], "tests", "many")) is pairs
    assert len(objective_view(four, objective(ROWS["kto"], "tests", "one"))) == 4 * NUM


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_soft_labels_count_both_orders(name: str, tmp_path: Path) -> None:
    """The step's loss is that of a label sampled with probability s(difference of scores), however it is packed."""
    hard = aligned(name, tmp_path)
    soft = replace(hard, soft=True)
    _, segments = next(iter(batch_of(hard.store, [0, 1, 2], ONE_PASS).micro_batches()))
    stats = hard._read(segments)
    gap = torch.tensor(hard.store.scores[:3]).double()
    labels = (gap[:, 0] - gap[:, 1]).sigmoid()
    first = hard.values([0, 1, 2], stats, {}, 1)[0]
    values = soft.values([0, 1, 2], stats, {}, 1)[0]
    assert ((values - first).abs() > 1e-3).all()  # the other order has a part
    if name == "dpo":
        ratio = 0.1 * (stats.policy - hard.reference([0, 1, 2], stats.policy)).total
        logit = ratio[:, 0] - ratio[:, 1]
        assert torch.allclose(values, -labels * logit.sigmoid().log() - (1 - labels) * (-logit).sigmoid().log())
    assert distance(taken(soft, ORDERS[0], 20, {}), taken(soft, ORDERS[0], ONE_PASS, {})) < 1e-12
