"""`group: prompt`: whole prompts are taken into a step; every comparison once an epoch, no step empty."""

import math
from itertools import islice
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from comparisons import comparisons, stored, tiny
from loss_family import aligned
from prefdag.config.online.settings import Online
from prefdag.config.sections.preference import Preference
from prefdag.config.sections.training import Training
from prefdag.errors import UserError
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import train
from prefdag.training.step_order import step_order, whole_prompts


@settings(max_examples=100, deadline=None)
@hypothesis.given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=40), more=st.integers(0, 20), data=st.data())
def test_an_epoch_sees_each_comparison_once_and_whole_prompts(sizes: list[int], more: int, data: st.DataObject) -> None:
    prompts = np.repeat(np.arange(len(sizes)) * 7, sizes)
    prompts = np.array(data.draw(st.permutations(prompts.tolist())))  # a prompt's comparisons need not be neighbours
    num, batch_size = len(prompts), 2 * max(sizes) + more
    per_epoch = math.ceil(num / batch_size)
    if num // per_epoch < max(sizes):
        return
    order = whole_prompts(prompts, batch_size, seed=3)
    for epoch in (0, 1):
        steps = [order(epoch * per_epoch + number) for number in range(per_epoch)]
        assert sorted(np.concatenate(steps)) == list(range(num))
        for step in steps:
            assert len(step) and abs(len(step) - num / per_epoch) < max(sizes)
            assert np.isin(prompts, prompts[step]).sum() == len(step)  # the step's prompts are all in it


def test_equal_prompts_fill_the_batch_exactly() -> None:
    """24 pairs a step and 6 a prompt: four prompts in each step, another order in each epoch and for each seed."""
    prompts = np.repeat(np.arange(20), 6)
    order, other = whole_prompts(prompts, 24, 0), whole_prompts(prompts, 24, 1)
    steps = [order(step).tolist() for step in range(10)]
    assert {len(step) for step in steps} == {24}
    assert steps[:5] != steps[5:] and steps[0] != other(0).tolist()
    assert steps[::-1] == [order(step).tolist() for step in reversed(range(10))]


def test_a_prompt_larger_than_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="a prompt has 6 comparisons and a step 4; raise batch_size to 12"):
        whole_prompts(np.repeat(np.arange(4), 6), 4, 0)


def test_it_is_stated_only_where_it_is_set() -> None:
    assert "group" not in Preference().model_dump(mode="json")
    assert Preference(group="prompt").model_dump(mode="json")["group"] == "prompt"
    with pytest.raises(ValueError, match="whole prompts already"):
        Online(group="prompt")


def test_a_stopped_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    pairs = comparisons(12, 2)
    stated = Training(batch_size=4, epochs=9, max_steps=5, learning_rate=1e-2, tokens_per_batch=40, group="prompt")
    weights, losses = [], []
    for stop in (None, 2):
        model = tiny()
        task = aligned("simpo", tmp_path / f"{stop}", model)
        store = stored(tmp_path / f"{stop}-pairs", pairs, None, [row // 2 for row in range(12)])
        task = type(task)(task.objective, model, store)
        assert {len(step_order(store, stated)(number)) for number in range(6)} == {4}
        if stop:
            saved = Checkpoint(tmp_path / "saved")
            saved.due = lambda: True  # type: ignore[method-assign]
            list(islice(train(model, store, stated, task, saved), stop))
            model = tiny()
            task = type(task)(task.objective, model, store)
            losses.append([step.loss for step in train(model, store, stated, task, Checkpoint(tmp_path / "saved"))])
        else:
            losses.append([step.loss for step in train(model, store, stated, task)])
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert losses[0] == losses[1] and torch.equal(*weights)
