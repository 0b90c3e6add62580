"""The persistent adversary: the estimate against enumeration and simulation, and how often its intervals cover."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from test_predictions import COVERAGE, DRAWS, IMAGES, REPETITIONS, crossed

from advbench.evaluation import Bools, draw_interval, persistence, wilson


def table(q: float | NDArray[np.float64], seed: int = 0, draws: int = DRAWS, images: int = IMAGES) -> Bools:
    correct: Bools = np.random.default_rng(seed).random((draws, images)) < q
    return correct


@pytest.mark.parametrize("tries", [1, 2, 5, 7])
def test_the_share_is_that_over_all_subsets_of_the_draws(tries: int) -> None:
    correct = table(0.8, draws=7, images=9)
    exact = np.mean([1 - correct[list(some)].all(0).mean() for some in combinations(range(7), tries)])
    (found,) = persistence(correct, (tries,))
    assert found.tries == tries
    assert found.broken == pytest.approx(exact)
    assert found.interval.low <= found.broken <= found.interval.high


def test_more_answers_than_draws_are_left_out() -> None:
    assert [each.tries for each in persistence(table(0.9, draws=8))] == [1, 5]


@pytest.mark.parametrize("q", [0.99, 0.9, 0.5])
def test_one_answer_is_a_single_draw(q: float) -> None:
    correct = table(q)
    (found,) = persistence(correct, (1,))
    low, high = draw_interval(correct)
    assert (found.broken, *found.interval) == pytest.approx((1 - correct.mean(), 1 - high, 1 - low))


def test_members_are_enumerated_for_any_number_of_answers() -> None:
    correct = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]], bool)
    found = persistence(correct, (1, 5, 20), enumerated=True)
    assert [each.broken for each in found] == pytest.approx([1 - (1 + 0.75**r) / 3 for r in (1, 5, 20)])


def test_a_deterministic_classifier_answers_the_same_each_time() -> None:
    correct = table(0.8, draws=1)
    low, high = wilson(correct.mean(), IMAGES)
    for found in persistence(correct, enumerated=True):
        assert (found.broken, *found.interval) == pytest.approx((1 - correct.mean(), 1 - high, 1 - low))


@pytest.mark.parametrize("tries", [1, 5, 20])
def test_the_estimate_is_that_of_asking_again(tries: int) -> None:
    """Against the simulation: each image is asked for R answers by fresh draws, which images share."""
    rng = np.random.default_rng(0)
    hard = 2 + 1.5 * rng.standard_normal(4000)
    asked = np.zeros(4000)
    estimates = []
    for _ in range(200):
        right = expit(hard + 0.5 * rng.standard_normal((tries, 1)))
        asked += (rng.random(right.shape) < right).all(0)
        right = expit(hard + 0.5 * rng.standard_normal((DRAWS, 1)))
        estimates.append(persistence(rng.random(right.shape) < right, (tries,))[0].broken)
    broken = 1 - asked.mean() / 200
    error = math.hypot(np.std(estimates), 0.4 / math.sqrt(tries)) / math.sqrt(200)
    assert np.mean(estimates) == pytest.approx(broken, abs=4 * error)


CASES = [0.99, 0.95, 0.9, (2.0, 0.5, 1.0), (2.0, 1.0, 1.0), (3.0, 1.0, 2.0), (1.0, 0.0, 3.0)]


@pytest.mark.parametrize("tries", [1, 5, 20])
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_other_images_and_draws(case: float | tuple[float, float, float], tries: int) -> None:
    rng = np.random.default_rng(0)
    if isinstance(case, float):
        truth = 1 - case**tries
    else:
        level, by_draw, by_image = case
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        image = level + by_image * np.random.default_rng(9).standard_normal(20_000)
        right = weights / weights.sum() @ expit(by_draw * nodes[:, None] + image)
        truth = float(1 - (right**tries).mean())
    hits = 0
    for _ in range(REPETITIONS):
        q = case if isinstance(case, float) else crossed(rng, *case, 0.0, DRAWS, IMAGES)
        ((_, _, (low, high)),) = persistence(rng.random((DRAWS, IMAGES)) < q, (tries,))
        hits += low <= truth <= high
    assert COVERAGE[0] <= hits / REPETITIONS <= COVERAGE[1]
