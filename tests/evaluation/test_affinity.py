"""Affinity's intervals on constructed predictions, and how often they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from advbench.evaluation import Bools, affinities, affinity, affinity_intervals, resampled_accuracies


def intervals(clean: Bools, transfer: Bools, white: Bools, spread: float = 0.0, resamples: int = 200) -> list[float]:
    cells = resampled_accuracies(np.stack([clean, transfer, white]), np.full(3, spread), resamples)
    (ends,) = affinity_intervals(*(row[None] for row in cells)).tolist()
    return ends


def images(generator: np.random.Generator, count: int, clean: float, transfer: float, white: float) -> list[Bools]:
    """Right clean, transferred and white-box, nested as they are in life: what a transfer breaks a white box does."""
    hardness = generator.random(count)
    return [hardness < clean, hardness < transfer, hardness < white]


def test_an_attack_on_itself_has_no_doubt() -> None:
    clean, _, white = images(np.random.default_rng(0), 500, 0.9, 0.6, 0.3)
    assert intervals(clean, white, white) == pytest.approx([1.0, 1.0])
    assert intervals(clean, clean, white) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_resamples_have_the_mean_and_the_variance_of_their_cells() -> None:
    correct = np.random.default_rng(0).random((3, 400)) < np.array([[0.9], [0.5], [0.1]])
    plain = resampled_accuracies(correct, np.zeros(3), 4000)
    noisy = resampled_accuracies(correct, np.array([0.0, 1e-3, 1e-3]), 4000)
    mean = correct.mean(1)
    assert plain.shape == (3, 4000)
    assert plain.mean(1) == pytest.approx(mean, abs=2e-3)
    assert plain.var(1) == pytest.approx(mean * (1 - mean) / 400, rel=0.1)
    assert noisy.var(1) == pytest.approx(mean * (1 - mean) / 400 + np.array([0, 1e-3, 1e-3]), rel=0.1)
    assert (noisy[0] == plain[0]).all()


def test_cells_of_one_resample_are_of_the_same_images() -> None:
    correct = np.random.default_rng(0).random((1, 300)) < 0.5
    twice = resampled_accuracies(np.concatenate([correct, ~correct]), np.zeros(2))
    assert twice.sum(0) == pytest.approx(np.ones(200), abs=1e-5)


@pytest.mark.parametrize("truth", [(0.95, 0.8, 0.5), (0.9, 0.88, 0.2), (0.8, 0.3, 0.35)])
def test_intervals_cover_as_often_as_they_say(truth: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(1)
    rho = affinity(*truth).value
    hits = 0
    for _ in range(400):
        low, high = intervals(*images(generator, 500, *truth))
        hits += low <= rho <= high
    assert 0.91 <= hits / 400 <= 0.98


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
