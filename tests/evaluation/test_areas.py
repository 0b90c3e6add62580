"""Areas under accuracies over radii: known values, and how often their intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from advbench.evaluation import Spread, area_interval, area_weights, difference_intervals, wilson

NO_DRAWS = Spread(0.0, 1)
RADII = [0.05, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("radii", "expected"),
    [([0.3], [1]), ([0.1, 0.2], [0.5, 0.5]), ([0.1, 0.2, 0.3], [0.25, 0.5, 0.25]), ([0, 1, 3], [1 / 6, 1 / 2, 1 / 3])],
)
def test_radii_count_as_trapezoids_over_their_span(radii: list[float], expected: list[float]) -> None:
    assert area_weights(radii) == pytest.approx(np.array(expected))


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=6, unique_by=lambda eps: round(eps, 3)))
def test_an_area_is_a_mean_over_the_radii(radii: list[float]) -> None:
    weights = area_weights(sorted(radii))
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()


def test_at_one_radius_and_seed_the_interval_is_that_of_an_accuracy() -> None:
    right = np.arange(200) < 130
    assert area_interval(right[None].astype(float), np.ones(1), NO_DRAWS) == pytest.approx(wilson(0.65, 200))
    assert area_interval(np.ones((1, 200)), np.ones(1), NO_DRAWS) == wilson(1.0, 200)


def test_draws_and_seeds_widen_an_interval() -> None:
    generator = np.random.default_rng(0)
    scores = (generator.random((3, 300)) < 0.6).astype(float)

    def width(table: np.ndarray, draws: Spread = NO_DRAWS) -> float:
        low, high = area_interval(table, np.ones(1), draws)
        return high - low

    assert width(scores[:1], Spread(0.02**2, 19)) > 1.1 * width(scores[:1])
    unlike = scores.copy()
    unlike[0, :60] = 0
    assert width(unlike) > 1.5 * width(scores)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_an_interval_holds_the_area_and_lies_in_0_to_1(images: int, seeds: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = area_weights(RADII)
    scores = (generator.random((seeds, images, 4)) < generator.random()) @ weights
    low, high = area_interval(scores, weights, NO_DRAWS)
    assert 0 <= low <= scores.mean() + 1e-9
    assert scores.mean() - 1e-9 <= high <= 1
    (ends,) = difference_intervals((scores - scores[:, ::-1])[None], weights, [NO_DRAWS])
    assert ends[0] < 0 < ends[1]  # of the same images in another order


@pytest.mark.parametrize(("worse", "better", "told"), [(0, 5, False), (0, 6, True), (6, 6, False), (10, 30, True)])
def test_few_images_tell_two_apart_as_in_mcnemars_test(worse: int, better: int, told: bool) -> None:
    """Exact, two-sided: 5 to 0 has p = .063, 6 to 0 .031."""
    differences = np.zeros(400)
    differences[:better], differences[better : better + worse] = 1, -1
    (ends,) = difference_intervals(differences[None, None], np.ones(1), [NO_DRAWS])
    assert (ends[0] > 0) == told


def margins(generator: np.random.Generator, mean: float, seeds: int, images: np.ndarray, seed_sd: float) -> np.ndarray:
    """Weight and verdict of classifiers whose images have a margin each, which seeds shift, `(seeds, N)`."""
    shift = generator.normal(0, seed_sd, (seeds, 1)) + generator.normal(0, 0.03, (seeds, len(images)))
    margin = mean + images + shift
    return (margin[..., None] > np.array(RADII)) @ area_weights(RADII)


def truth(mean: float, seed_sd: float) -> float:
    deviation = math.hypot(0.1, seed_sd, 0.03)
    return float(area_weights(RADII) @ norm.sf(RADII, mean, deviation))


CASES = [(100, 1, 0.15, 0.0), (100, 3, 0.3, 0.02), (359, 5, 0.05, 0.02), (1000, 3, 0.15, 0.0), (359, 3, 0.5, 0.02)]


@pytest.mark.parametrize(("images", "seeds", "mean", "seed_sd"), CASES)
def test_intervals_cover(images: int, seeds: int, mean: float, seed_sd: float) -> None:
    """Of areas, and of the difference of two classifiers on the same images, over images and trainings."""
    generator = np.random.default_rng(1)
    weights, areas, differences = area_weights(RADII), 0, 0
    expected, other = truth(mean, seed_sd), truth(mean - 0.02, seed_sd)
    for _ in range(400):
        hardness = generator.normal(0, 0.1, images)
        one = margins(generator, mean, seeds, hardness, seed_sd)
        two = margins(generator, mean - 0.02, seeds, hardness, seed_sd)
        low, high = area_interval(one, weights, NO_DRAWS)
        areas += low <= expected <= high
        ((low, high),) = difference_intervals((one - two)[None], weights, [NO_DRAWS])
        differences += low <= expected - other <= high
    assert 0.9 <= areas / 400 <= 0.99
    assert 0.9 <= differences / 400 <= 0.99


def test_a_paired_difference_is_known_better_than_one_over_other_images() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.normal(0, 0.1, 500)
    one = margins(generator, 0.2, 1, hardness, 0.0)
    two = margins(generator, 0.22, 1, hardness, 0.0)
    pairs = np.stack([one - two, one - generator.permutation(two, axis=1)])
    paired, unpaired = difference_intervals(pairs, area_weights(RADII), [NO_DRAWS] * 2)
    assert paired[1] - paired[0] < 0.7 * (unpaired[1] - unpaired[0])
