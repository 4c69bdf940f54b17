"""Rejection sampling follows its optimum, and labels follow Bradley and Terry."""

import numpy as np
import pytest
import torch

from prefdag.data.pair_laws import best_of_n, bradley_terry, disjoint_pairs, rejection_sampled
from prefdag.evaluation.sampling_laws import best_of_n as law_of_best
from prefdag.evaluation.sampling_laws import inclusion, rejection

REFERENCE, REWARD, BETA = np.array([0.5, 0.25, 0.15, 0.1]), np.array([0.0, 1.0, -0.5, 1.6]), 0.7
PROMPTS, DRAWS = 2000, 64


def accepted(merge: bool) -> np.ndarray:
    """The shares of four responses among what is accepted of 64 draws at each of 2,000 prompts.

    merge: with the response as the key of a candidate, as the published code has it.
    """
    random = np.random.default_rng(0)
    counts = np.zeros(4)
    for _ in range(PROMPTS):
        draws = random.choice(4, DRAWS, p=REFERENCE)
        draws = np.unique(draws) if merge else draws
        samples = rejection_sampled(REWARD[draws], BETA, 2, random)
        counts += np.bincount(draws[samples], minlength=4)
    return counts / counts.sum()


def test_accepted_samples_follow_the_optimum():
    """pi_ref exp(r / beta) / Z, within four standard errors of 4,000 draws, and the merged form is far from it."""
    law = rejection(torch.from_numpy(REFERENCE), torch.from_numpy(REWARD), BETA).law.numpy()
    error = np.sqrt(law * (1 - law) / (2 * PROMPTS))
    assert (abs(accepted(merge=False) - law) < 4 * error).all()
    assert (abs(accepted(merge=True) - law) > 10 * error).any()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_sweep_accepts_as_the_published_algorithm(keep: int):
    """Inclusion probabilities of four candidates by exact enumeration."""
    random = np.random.default_rng(1)
    counts = np.zeros(4)
    for _ in range(20000):
        counts[rejection_sampled(REWARD, BETA, keep, random)] += 1
    exact = inclusion(torch.from_numpy(REWARD), BETA, keep).numpy()
    assert counts / 20000 == pytest.approx(exact, abs=0.015)


def test_rejection_ends_when_no_candidate_is_left():
    assert sorted(rejection_sampled(np.array([0.0, -1e9, 3.0]), 0.5, 8, np.random.default_rng(0))) == [0, 1, 2]
    assert rejection_sampled(np.array([]), 0.5, 8, np.random.default_rng(0)) == []


def test_best_of_n_keeps_prompts_whose_samples_score_alike():
    assert best_of_n(np.array([1.0, 3.0, 3.0, 0.0, 0.0])) == [(1, 4)]
    assert best_of_n(np.array([2.0, 2.0, 2.0])) == [(0, 2)]
    assert best_of_n(np.array([2.0])) == [(0, 0)]


def test_the_best_of_n_follows_its_law():
    """Of equal scores the first is the best: for independent samples each is as likely as under the reference."""
    random = np.random.default_rng(2)
    reward = np.array([0.0, 1.0, 1.0, -1.0])
    draws = random.choice(4, (20000, 3), p=REFERENCE)
    best = [one[best_of_n(reward[one])[0][0]] for one in draws]
    law = law_of_best(torch.from_numpy(REFERENCE), torch.from_numpy(reward), 3).numpy()
    assert np.bincount(best, minlength=4) / 20000 == pytest.approx(law, abs=0.015)


def test_disjoint_pairs_use_each_sample_once_and_leave_ties_out():
    scores = np.array([0.0, 1.0, 2.0, 2.0, 5.0])
    assert disjoint_pairs([0, 1, 2, 3, 4], scores) == [(1, 0)]
    assert disjoint_pairs([4, 0, 2, 1], scores) == [(4, 0), (2, 1)]


def test_labels_follow_bradley_and_terry():
    """The better of scores 2 and 1 is chosen where the uniform number is below s(1) = 0.7311."""
    scores = np.array([1.0, 2.0])
    assert bradley_terry((1, 0), scores, 0.731) == (1, 0)
    assert bradley_terry((1, 0), scores, 0.732) == (0, 1)
