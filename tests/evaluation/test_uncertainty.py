"""Calibration, histograms and retention, against other libraries and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from advbench.errors import InputError
from advbench.evaluation import (
    BINS,
    Predictions,
    auroc_interval,
    calibration,
    detection,
    histogram,
    retention,
    score,
    uncertainty,
)


def predictions(
    seed: int, *, draws: int = 4, count: int = 200, classes: int = 5, sharpness: float = 3.0
) -> Predictions:
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(draws, count, classes))
    probs = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    return Predictions.from_probs(probs.astype(np.float32), generator.integers(0, classes, count))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
def test_calibration_is_that_of_torchmetrics_and_scikit_learn(seed: int, sharpness: float) -> None:
    found = predictions(seed, sharpness=sharpness)
    ours = calibration(found)
    probs, labels = torch.from_numpy(found.mean_probs), torch.from_numpy(found.labels)
    theirs = multiclass_calibration_error(probs, labels, num_classes=5, n_bins=15, norm="l1")
    exact = found.mean_probs.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    assert ours.ece == pytest.approx(float(theirs), abs=1e-5)
    assert ours.nll == pytest.approx(log_loss(found.labels, exact, labels=range(5)), rel=1e-5)
    brier = brier_score_loss(found.labels, exact, labels=range(5), scale_by_half=False)
    assert ours.brier == pytest.approx(brier, rel=1e-5)


def test_calibration_by_hand() -> None:
    # Three images of confidence .8, two of them right, and one of confidence .6, right.
    probs = np.array([[[0.8, 0.2], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6]]], np.float32)
    found = calibration(Predictions.from_probs(probs, np.array([0, 1, 1, 1])))
    assert found.ece == pytest.approx((abs(3 * 0.8 - 2) + abs(0.6 - 1)) / 4, abs=1e-6)
    assert found.nll == pytest.approx(-(2 * math.log(0.8) + math.log(0.2) + math.log(0.6)) / 4, abs=1e-6)
    assert found.brier == pytest.approx((2 * 2 * 0.2**2 + 2 * 0.8**2 + 2 * 0.4**2) / 4, abs=1e-6)


def test_calibration_of_a_sure_classifier() -> None:
    probs = np.eye(3, dtype=np.float32)[np.array([[0, 1, 2]])]
    right = calibration(Predictions.from_probs(probs, np.array([0, 1, 2])))
    wrong = calibration(Predictions.from_probs(probs, np.array([1, 2, 0])))
    assert (right.ece, right.nll, right.brier) == pytest.approx((0, 0, 0), abs=1e-6)
    assert (wrong.ece, wrong.brier) == pytest.approx((1, 2), abs=1e-6)
    assert wrong.nll == pytest.approx(-math.log(np.finfo(np.float32).eps))  # finite


@given(st.lists(st.floats(-0.1, 3.0), min_size=1, max_size=50), st.integers(2, 20))
@settings(deadline=None)
def test_a_histogram_counts_every_image_once(scores: list[float], classes: int) -> None:
    counts = histogram(np.array(scores), classes)
    assert len(counts) == BINS
    assert sum(counts) == len(scores)
    width = math.log(classes) / BINS
    lowest = sum(score < width * (1 - 1e-9) for score in scores)
    assert counts[0] >= lowest


def test_a_histogram_by_hand() -> None:
    top = math.log(10)
    counts = histogram(np.array([0.0, top / 2 + 1e-9, top, top + 1]), 10)
    assert counts == (1, *[0] * 9, 1, *[0] * 8, 2)


def test_retention_by_each_entropy_ranks_by_it() -> None:
    # The draws agree on the first image, which is wrong, and contradict each other on the second, which is right.
    probs = np.array([[[0.45, 0.55], [0.99, 0.01]], [[0.45, 0.55], [0.2, 0.8]]], np.float32)
    found = Predictions.from_probs(probs, np.array([0, 0]))
    measures = uncertainty(found)
    assert measures.aleatoric[0] > measures.aleatoric[1]
    assert measures.epistemic[0] < measures.epistemic[1]
    curve = {name: retention(found.ensemble_correct, getattr(measures, name), (0.5, 1.0)) for name in measures._fields}
    assert curve["aleatoric"].accuracies == (1.0, 0.5)
    assert curve["epistemic"].accuracies == (0.0, 0.5)


def test_least_confidence_tells_images_apart_where_a_deterministic_nets_votes_do_not() -> None:
    one = predictions(0, draws=1)
    np.testing.assert_allclose(score(one, "least_confidence"), 1 - one.mean_probs.max(1), atol=1e-7)
    np.testing.assert_array_equal(score(one, "variation_ratio"), 0)
    np.testing.assert_array_equal(score(one, "total"), uncertainty(one).total)
    with pytest.raises(InputError, match=r"unknown measure of uncertainty 'totl': .*did you mean 'total'"):
        score(one, "totl")


def test_the_interval_of_an_auroc_covers_as_often_as_it_says() -> None:
    """Scores from N(0, 1) and N(shift, 1): the area is Phi(shift / sqrt 2)."""
    generator = np.random.default_rng(0)
    for shift in (0.0, 1.0, 2.5):
        area = 0.5 * (1 + math.erf(shift / 2))
        ends = [auroc_interval(generator.normal(size=80), generator.normal(shift, 1, size=120)) for _ in range(400)]
        assert 0.92 <= np.mean([low <= area <= high for low, high in ends]) <= 0.985
    apart = auroc_interval(np.zeros(50), np.ones(20))
    assert detection(np.zeros(50), np.ones(20)).auroc == apart.high == 1
    assert 0.8 < apart.low < 0.9
