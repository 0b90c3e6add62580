"""Affinity's intervals on constructed predictions, and how often they cover."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from advbench.evaluation import Bools, affinities, affinity, affinity_intervals

Maker = Callable[..., list[Bools]]


def intervals(clean: Bools, transfer: Bools, white: Bools, spread: float = 0.0) -> list[float]:
    (ends,) = affinity_intervals(clean[None], transfer[None], white[None], np.full((1, 3), spread)).tolist()
    return ends


def images(generator: np.random.Generator, count: int, clean: float, transfer: float, white: float) -> list[Bools]:
    """Right clean, transferred and white-box, nested as they are in life: what a transfer breaks a white box does."""
    hardness = generator.random(count)
    return [hardness < clean, hardness < transfer, hardness < white]


def independent(generator: np.random.Generator, count: int, *truth: float) -> list[Bools]:
    return [generator.random(count) < each for each in truth]


def test_the_ends_are_where_fieller_puts_them() -> None:
    """Those ratios rho are held at which A - rho B is no further from 0 than 1.96 of its standard errors."""
    clean, transfer, white = (row.astype(float) for row in images(np.random.default_rng(0), 500, 0.9, 0.6, 0.3))
    low, high = intervals(clean > 0, transfer > 0, white > 0)
    for rho in (low, high):
        difference = (clean - transfer) - rho * (clean - white)
        variance = difference.var() / 500 + (1 + rho**2) / 500**2
        assert abs(difference.mean()) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert low < affinity(clean.mean(), transfer.mean(), white.mean()).value < high


def test_intervals_widen_with_what_the_choice_of_draws_does() -> None:
    cells = images(np.random.default_rng(0), 500, 0.9, 0.6, 0.3)
    widths = [np.ptp(intervals(*cells, spread=spread)) for spread in (0.0, 1e-4, 1e-3)]
    assert widths == sorted(widths)
    assert widths[2] > 1.5 * widths[0]


def covered(maker: Maker, count: int, truth: tuple[float, float, float], repetitions: int) -> float:
    rho = affinity(*truth).value
    generator = np.random.default_rng(1)
    ends = [intervals(*maker(generator, count, *truth)) for _ in range(repetitions)]
    return float(np.mean([low <= rho <= high for low, high in ends if not math.isnan(low)]))


TRUTHS = [(0.95, 0.8, 0.5), (0.9, 0.88, 0.2), (0.8, 0.3, 0.35), (0.95, 0.9, 0.8)]


@pytest.mark.parametrize("maker", [images, independent])
@pytest.mark.parametrize("count", [100, 500])
@pytest.mark.parametrize("truth", TRUTHS)
def test_intervals_cover_as_often_as_they_say(maker: Maker, count: int, truth: tuple[float, float, float]) -> None:
    assert 0.92 <= covered(maker, count, truth, 400) <= 0.985


def test_where_an_attack_is_expected_to_change_one_image_they_cover_more() -> None:
    assert covered(images, 100, (0.97, 0.96, 0.6), 400) >= 0.92


def test_what_an_attack_hardly_does_has_no_bound() -> None:
    generator = np.random.default_rng(0)
    clean, transfer, white = images(generator, 100, 0.90, 0.90, 0.89)
    assert all(map(math.isnan, intervals(clean, transfer, white, spread=1e-4)))


def test_many_affinities_are_those_of_one_at_a_time() -> None:
    accuracies = np.random.default_rng(0).choice([0.0, 0.2, 0.5, 0.9, np.nan], (300, 3))
    values, reasons = affinities(accuracies)
    one_by_one = [affinity(*row) for row in accuracies.tolist()]
    assert values.tolist() == pytest.approx([rho.value for rho in one_by_one], nan_ok=True)
    assert reasons == [rho.reason for rho in one_by_one]
    assert len(set(reasons)) == 3
