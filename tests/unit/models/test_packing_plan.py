"""Which comparisons a step sees, how they are packed, and how the learning rate goes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdag.config.sections.training import Training
from prefdag.models.packing import micro_batches, num_steps, step_members
from prefdag.seeds import generator, named_seed
from prefdag.training.loop import schedule


@settings(max_examples=50, deadline=None)
@given(num=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_sees_each_comparison_once(num: int, batch_size: int, seed: int, epoch: int) -> None:
    per_epoch = math.ceil(num / batch_size)
    steps = [step_members(epoch * per_epoch + place, num, batch_size, seed) for place in range(per_epoch)]
    assert sorted(np.concatenate(steps)) == list(range(num))
    sizes = [len(step) for step in steps]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    if num % batch_size == 0:
        order = generator(seed, "order", epoch).permutation(num)
        assert np.array_equal(np.stack(steps), order.reshape(-1, batch_size))


def test_a_remainder_is_dealt_over_the_steps() -> None:
    """2,849 = 89 x 32 + 1 comparisons are 90 steps of 31 or 32, and not a last step of one."""
    assert [len(step_members(step, 2849, 32, 0)) for step in range(90)] == [32] * 59 + [31] * 31


def test_membership_is_a_function_of_seed_and_step_alone() -> None:
    """Asked again, and in another order, it is the same; another seed and another epoch have other orders."""
    forwards = [step_members(step, 100, 10, 0).tolist() for step in range(20)]
    np.random.default_rng().random()
    backwards = [step_members(step, 100, 10, 0).tolist() for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards[:10] != forwards[10:]
    assert forwards != [step_members(step, 100, 10, 1).tolist() for step in range(20)]


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), budget=st.integers(1, 120), data=st.data())
def test_micro_batches_use_each_comparison_once_within_the_budget(
    lengths: list[int], budget: int, data: st.DataObject
) -> None:
    """Only a comparison that exceeds the budget by itself may, and then it is alone."""
    sizes = np.array(lengths)
    ids = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True, min_size=1))
    planned = list(micro_batches(ids, sizes, budget))
    assert sorted(index for taken, _ in planned for index in taken) == sorted(ids)
    assert planned == list(micro_batches(list(reversed(ids)), sizes, budget))
    for taken, rows in planned:
        assert sorted(place for row in rows for place in row) == list(range(len(taken)))
        width = max(sum(lengths[taken[place]] for place in row) for row in rows)
        assert width == max(lengths[index] for index in taken)
        assert width * len(rows) <= budget or len(taken) == 1


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1, None, 4), (2, None, 8), (0.5, None, 2), (0.6, None, 3), (3, 5, 5), (1, 100, 100), (9, 0, 0)],
)
def test_num_steps_by_hand(epochs: float, max_steps: int | None, expected: int) -> None:
    """10 comparisons by 3 are 4 steps."""
    assert num_steps(10, 3, epochs, max_steps) == expected


def test_num_steps_is_not_moved_by_rounding() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point, and 7 steps."""
    assert num_steps(100, 1, 0.07, None) == 7


def training(**values: object) -> Training:
    return Training(batch_size=1, learning_rate=1.0, **values)


def test_schedules_by_hand() -> None:
    """10 steps of which 2 warm up: 1/2, 1, then over the remaining 8 (progress 0, 1/8, ..., 7/8) from 1 towards 0."""
    expected = {
        "constant": [0.5, 1] + [1.0] * 8,
        "linear": [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
        "cosine": [0.5, 1] + [math.cos(math.pi * place / 16) ** 2 for place in range(8)],
    }
    for name, values in expected.items():
        settings = training(schedule=name, warmup_steps=2)
        assert [schedule(step, 10, settings) for step in range(10)] == pytest.approx(values)


def test_a_warm_up_as_a_share_of_the_steps() -> None:
    """Rounded up, as in Transformers: 0.15 of 10 steps are 2; 0.1 of 30 are 3 and not 4."""
    for schedule_name in ("constant", "linear", "cosine"):
        for ratio, steps, warmup in ((0.15, 10, 2), (0.1, 30, 3), (0.0, 10, 0)):
            by_ratio, by_steps = training(warmup_ratio=ratio), training(warmup_steps=warmup)
            settings = [one.model_copy(update={"schedule": schedule_name}) for one in (by_ratio, by_steps)]
            assert len({tuple(schedule(step, steps, one) for step in range(steps)) for one in settings}) == 1
    with pytest.raises(ValueError, match="warmup_ratio: warmup_steps is stated as well"):
        training(warmup_ratio=0.1, warmup_steps=3)


def test_long_schedules_end_near_zero() -> None:
    for name, last in (("cosine", 1e-5), ("linear", 2e-3)):
        assert 0 < schedule(999, 1000, training(schedule=name)) < last


def test_a_warm_up_longer_than_the_training_only_warms_up() -> None:
    settings = training(warmup_steps=20)
    assert [schedule(step, 4, settings) for step in range(4)] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_named_seeds_do_not_move_each_other() -> None:
    """Every purpose has its own seeds, independent of the others; torch takes 63 bits."""
    assert named_seed(0, "order", 1) != named_seed(0, "order", 2) != named_seed(1, "order", 2)
    assert 0 <= named_seed(0) < 2**63
    first = generator(3, "sampling", 7).random(4)
    generator(3, "order", 0).random(100)
    assert (generator(3, "sampling", 7).random(4) == first).all()
