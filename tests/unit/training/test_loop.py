"""The loop: how a step is packed does not change it, and a step is what the optimizers' papers say."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from comparisons import comparisons, stored, tiny
from prefdag.config.objectives import objective
from prefdag.config.sections.training import Training
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.models.logprobs import logprobs
from prefdag.models.naive import float64_norms
from prefdag.models.packing import micro_batches, pack, step_members
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import Task, train
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.records import Step
from prefdag.training.supervised_task import supervised_task

BUDGETS = [1, 60, 10_000]  # a comparison at a time, a few, all of a step together
Tasks = Callable[[PreTrainedModel, Store], Task]


@pytest.fixture(autouse=True)
def _float64_norms():
    with float64_norms():
        yield


def settings(**values: object) -> Training:
    """A clip far away, so that a wrong normaliser shows in the weights."""
    return Training(**{"batch_size": 5, "learning_rate": 1e-2, "max_steps": 3, "max_grad_norm": 1e9, **values})


def trained(task: Tasks, store: Store, **values: object) -> tuple[list[Step], Tensor]:
    """The records of a training from the same start, and the weights that it ends with, in one row."""
    model = tiny()
    steps = list(train(model, store, settings(**values), task(model, store)))
    return steps, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def budgets_apart(task: Callable[[int], Tasks], store: Store, optimizer: str) -> float:
    """How far losses, gradient norms and weights are apart after 3 steps of different budgets; also of twins."""
    runs = [trained(task(budget), store, tokens_per_batch=budget, optimizer=optimizer) for budget in BUDGETS]
    first, vector = runs[0]
    apart = [(other - vector).abs().max().item() for _, other in runs[1:]]
    for records, _ in runs[1:]:
        for one, other in zip(first, records, strict=True):
            apart += [abs(one.loss - other.loss), abs(one.grad_norm - other.grad_norm)]
    return max(apart)


def simpo(model: PreTrainedModel, store: Store) -> Task:
    return PreferenceTask(objective({"method": "simpo"}, "tests", "row"), model, store).task(0)


def mean_of_means(of: Tasks, budget: int) -> Tasks:
    """The broken twin: each micro-batch is averaged over what it holds itself, and the averages are averaged."""

    def task(model: PreTrainedModel, store: Store) -> Task:
        right = of(model, store)

        def losses(ids, segments):
            values, metrics = right.losses(ids, segments)
            return values / right.normaliser(np.array(ids)), metrics

        return Task(losses, lambda ids: len(list(micro_batches(ids, store.lengths(), budget))))

    return task


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
@pytest.mark.parametrize(("of", "num_responses"), [(supervised_task, 1), (simpo, 2)])
def test_the_budget_does_not_change_a_step(of: Tasks, num_responses: int, optimizer: str, tmp_path: Path) -> None:
    store = stored(tmp_path, comparisons(13, num_responses))
    assert budgets_apart(lambda budget: of, store, optimizer) < 1e-10


@pytest.mark.parametrize(("of", "num_responses"), [(supervised_task, 1), (simpo, 2)])
def test_a_mean_of_means_is_caught(of: Tasks, num_responses: int, tmp_path: Path) -> None:
    store = stored(tmp_path, comparisons(13, num_responses))
    assert budgets_apart(lambda budget: mean_of_means(of, budget), store, "adamw") > 1e-4


def test_micro_batches_really_differ_between_the_budgets(tmp_path: Path) -> None:
    store = stored(tmp_path, comparisons(13, 2))
    ids = step_members(0, 13, 5, 0)
    numbers = [len(list(micro_batches(ids, store.lengths(), budget))) for budget in BUDGETS]
    assert numbers[0] == 5 and numbers[0] > numbers[1] > numbers[2] == 1


def test_a_steps_loss_is_the_sum_over_the_global_count(tmp_path: Path) -> None:
    """SFT: the step's negative log-likelihood over the step's counted tokens, both computed apart."""
    pairs = comparisons(13, 1)
    store, model = stored(tmp_path, pairs), tiny()
    taken = [pairs[index] for index in step_members(0, 13, 5, 0)]
    expected = -logprobs(model, pack(taken)).tokens.mean().item()
    (first, *_), _ = trained(supervised_task, store, tokens_per_batch=40)
    assert first.loss == pytest.approx(expected, abs=1e-12)
    assert first.num_comparisons == 5
    assert first.num_tokens == sum(len(one.prompt) + len(one.responses[0]) for one in taken)


def simpo_per_token(model: PreTrainedModel, store: Store) -> Task:
    return replace(simpo(model, store), normaliser=lambda ids: 7.0 * len(ids))


def test_metrics_are_means_over_the_steps_comparisons(tmp_path: Path) -> None:
    """Independent of what the loss is divided by."""
    pairs = comparisons(13, 2)
    store, model = stored(tmp_path, pairs), tiny()
    total = logprobs(model, pack([pairs[index] for index in step_members(0, 13, 5, 0)])).total
    (first, *_), _ = trained(simpo_per_token, store, tokens_per_batch=40)
    assert first.metrics["chosen_logprob"] == pytest.approx(total[:, 0].mean().item(), abs=1e-10)
    assert first.metrics["rejected_logprob"] == pytest.approx(total[:, 1].mean().item(), abs=1e-10)


def moved(**values: object) -> tuple[Tensor, Tensor, float]:
    """One step on the loss sum(w^2) / 2: weights before (which are its gradient too) and after, and gradient norm."""
    layer = torch.nn.Linear(3, 1, bias=False).double()
    layer.weight.data.copy_(torch.tensor([[3.0, -4.0, 0.0]]))
    before = layer.weight.detach().clone()
    task = Task(lambda ids, segments: ((layer.weight**2).sum().view(1) / 2, {}), len)
    with_one = stored(Path(values.pop("folder")), comparisons(1, 1))
    (step,) = train(layer, with_one, settings(batch_size=1, max_steps=1, **values), task)
    return before, layer.weight.detach(), step.grad_norm


def test_adamw_by_hand(tmp_path: Path) -> None:
    """First step: lr * g / (|g| + 1e-8) = lr * sign(g), after a decay of lr * 0.1 * w; no gradient, no move."""
    _, after, norm = moved(folder=tmp_path, learning_rate=0.01, weight_decay=0.1)
    assert norm == pytest.approx(5)
    assert after[0].tolist() == pytest.approx([3 - 0.003 - 0.01, -4 + 0.004 + 0.01, 0], abs=1e-9)


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.999), (0.5, 0.999), (0.9, 0.6)])
def test_adams_betas_are_those_of_the_suite(first: float, second: float, tmp_path: Path) -> None:
    """Three steps on sum(w^2) / 2 as Kingma and Ba write them, algorithm 1; the first alone would hide both betas."""
    layer = torch.nn.Linear(3, 1, bias=False).double()
    layer.weight.data.copy_(torch.tensor([[3.0, -4.0, 0.5]]))
    weights = layer.weight.detach().clone()
    task = Task(lambda ids, segments: ((layer.weight**2).sum().view(1) / 2, {}), len)
    chosen = settings(batch_size=1, learning_rate=0.3, schedule="constant", adam_beta1=first, adam_beta2=second)
    list(train(layer, stored(tmp_path, comparisons(1, 1)), chosen, task))
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in (1, 2, 3):
        mean, square = first * mean + (1 - first) * weights, second * square + (1 - second) * weights**2
        weights -= 0.3 * (mean / (1 - first**step)) / ((square / (1 - second**step)).sqrt() + 1e-8)
    assert layer.weight[0].tolist() == pytest.approx(weights[0].tolist(), abs=1e-6)


def test_the_schedule_reaches_the_optimizer(tmp_path: Path) -> None:
    """The first of two steps of warm-up moves by half; the record says the rate of every step."""
    before, after, _ = moved(folder=tmp_path / "one", learning_rate=0.01, warmup_steps=2)
    assert (before - after)[0].tolist() == pytest.approx([0.005, -0.005, 0], abs=1e-9)
    steps, _ = trained(supervised_task, stored(tmp_path / "many", comparisons(13, 1)), schedule="linear")
    assert [step.learning_rate for step in steps] == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3])


def test_rmsprop_by_hand(tmp_path: Path) -> None:
    """First step: lr * g / sqrt(0.01 g^2) = 10 lr sign(g), independent of the gradient's size."""
    _, after, _ = moved(folder=tmp_path, learning_rate=0.01, optimizer="rmsprop")
    assert after[0].tolist() == pytest.approx([2.9, -3.9, 0], abs=1e-6)


def test_the_gradient_is_clipped_and_its_own_norm_reported(tmp_path: Path) -> None:
    """Adam's first step would hide a clip, so epsilon decides: gradients of 3e-12 and -4e-12 against its 1e-8."""
    before, after, norm = moved(folder=tmp_path, learning_rate=1.0, max_grad_norm=5e-12)
    assert norm == pytest.approx(5)
    assert (before - after)[0].tolist() == pytest.approx([3e-4, -4e-4, 0], rel=1e-2)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_at_once(what: str, tmp_path: Path) -> None:
    """At step 3 of 5, of 2 comparisons each, a loss is infinite, or finite with a gradient that is not (sqrt at 0)."""
    store, model = replace(stored(tmp_path, comparisons(4, 1)), rows=np.array([10, 11, 12, 13])), tiny()
    right, calls = supervised_task(model, store), []

    def losses(ids, segments):
        values, metrics = right.losses(ids, segments)
        calls.append(ids)
        if len(calls) == 3:
            steep = (0 * values).sqrt()
            values = values + (steep if what == "gradient" else 1 / steep)
        return values, metrics

    checkpoint = Checkpoint(tmp_path / "resume", seconds_between=0)
    steps = train(
        model, store, settings(batch_size=2, max_steps=5, epochs=9), replace(right, losses=losses), checkpoint
    )
    before = [torch.nn.utils.parameters_to_vector(model.parameters()).clone() for _ in zip(range(2), steps)][-1]
    named = {"loss": "loss is inf", "gradient": "gradient's norm is nan"}[what]
    ids = step_members(2, 4, 2, 0).tolist()
    rows = f"{ids[0]}, {ids[1]} .source rows {11 + ids[0]}, {11 + ids[1]}.; "
    good = f"the last good state is step 2's, {tmp_path}/resume/state.pt; lower learning_rate"
    with pytest.raises(UserError, match=f"step 3: the {named}; the step's comparisons are {rows}{good}"):
        next(steps)
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), before)


def test_without_a_saved_state_it_says_so(tmp_path: Path) -> None:
    store, model = stored(tmp_path, comparisons(4, 1)), tiny()
    infinite = Task(lambda ids, segments: (supervised_task(model, store).losses(ids, segments)[0] * math.inf, {}), len)
    for checkpoint, last_good in (
        (None, "no state was saved"),
        (Checkpoint(tmp_path / "resume"), "no state was saved yet"),
    ):
        with pytest.raises(UserError, match=f"; {last_good}; lower"):
            list(train(model, store, settings(batch_size=4), infinite, checkpoint))


def test_probes_are_taken_at_the_first_and_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 steps and about 4 probes: every third step (12 // 4) from the first on; and the last."""
    monkeypatch.setattr("prefdag.training.loop.PROBES", 4)
    store, model = stored(tmp_path, comparisons(5, 1)), tiny()
    chosen = settings(batch_size=1, max_steps=12, epochs=10)
    steps = train(model, store, chosen, supervised_task(model, store), None, lambda: {"seen": 1.0})
    assert [step.number for step in steps if "seen" in step.metrics] == [1, 4, 7, 10, 12]


def test_max_steps_beyond_an_epoch_repeat_the_data(tmp_path: Path) -> None:
    """As many steps as stated, whatever `epochs` says: 10 steps of 5 comparisons are two epochs."""
    store = stored(tmp_path, comparisons(5, 1))
    stated, weights = trained(supervised_task, store, batch_size=1, max_steps=10, epochs=1)
    epochs, same = trained(supervised_task, store, batch_size=1, max_steps=None, epochs=2)
    assert [step.number for step in stated] == list(range(1, 11))
    assert stated == epochs and torch.equal(weights, same)


def test_a_gradient_that_is_not_clipped(tmp_path: Path) -> None:
    """`null` never scales, a small norm does; the norm before clipping is recorded either way."""
    store = stored(tmp_path, comparisons(5, 1))
    never, weights = trained(supervised_task, store, max_grad_norm=None, optimizer="rmsprop")
    far, same = trained(supervised_task, store, max_grad_norm=1e9, optimizer="rmsprop")
    clipped, others = trained(supervised_task, store, max_grad_norm=1e-3, optimizer="rmsprop")
    assert never == far and torch.equal(weights, same)
    assert clipped[0].grad_norm == never[0].grad_norm and not torch.equal(weights, others)
