from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

import advbench
from advbench import evaluation as metrics
from advbench.errors import InputError
from advbench.evaluation import Interval, Predictions
from advbench.evaluation.uncertainty import ROUNDING
from advbench.models import Classifier
from advbench.models.posterior import FlatLayout, SamplePosterior
from advbench.testing import small_data, small_net

DRAWS, IMAGES, REPETITIONS = 20, 50, 400
COVERAGE = (0.92, 0.985)

Sampler = Callable[[np.random.Generator], tuple[float, Interval]]


def softmax_table(seed: int, draws: int = 7, images: int = 11, classes: int = 3) -> NDArray[np.float64]:
    table: NDArray[np.float64] = np.random.default_rng(seed).dirichlet([0.7] * classes, size=(draws, images))
    return table


# Wilson


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 30), (30, 30), (1, 7), (37, 50), (9_931, 10_000)])
def test_wilson_agrees_with_scipy(right: int, images: int) -> None:
    expected = binomtest(right, images).proportion_ci(confidence_level=0.95, method="wilson")
    found = metrics.wilson(right / images, images)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_interval_contains_its_estimate_exactly() -> None:
    generator = np.random.default_rng(0)
    for images in range(1, 400):
        for right in (0, images, int(generator.integers(images + 1))):
            low, high = metrics.wilson(right / images, images)
            assert low <= right / images <= high, (right, images)
        for size, freedom in ((images * 0.37, 3.0), (images * 2.9, 40.0)):
            for mean in (0.0, 1.0, float(generator.random())):
                low, high = metrics.wilson(mean, size, freedom)
                assert 0 <= low <= mean <= high <= 1, (mean, size, freedom)


def test_wilson_widens_as_the_variance_is_known_less_well() -> None:
    widths = [
        high - low for low, high in (metrics.wilson(0.7, 100, freedom) for freedom in (1, 5, 20, 1_000, math.inf))
    ]
    assert widths == sorted(widths, reverse=True)
    assert metrics.wilson(0.7, 100, 1e9) == pytest.approx(metrics.wilson(0.7, 100), abs=1e-8)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 25))
def test_draws_that_agree_give_wilson_on_the_images(right: int, images: int, draws: int) -> None:
    right = min(right, images)
    row = np.arange(images) < right
    probs = np.broadcast_to(np.eye(2)[row.astype(int)], (draws, images, 2))
    predictions = Predictions.from_probs(probs, np.ones(images, np.int64))
    expected = binomtest(right, images).proportion_ci(method="wilson")
    for found in (predictions.interval, predictions.draw_interval):
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


# Intervals of randomised classifiers


@settings(deadline=None, max_examples=150)
@given(arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 8))))
def test_draw_interval_holds_the_mean_and_stays_in_the_unit_range(correct: NDArray[np.bool_]) -> None:
    low, high = metrics.draw_interval(correct)
    assert 0 <= low <= high <= 1
    assert low - 1e-12 <= correct.mean() <= high + 1e-12


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
def test_ensemble_interval_holds_the_accuracy_and_stays_in_the_unit_range(seed: int, draws: int, images: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, images)
    predictions = Predictions.from_probs(softmax_table(seed, draws, images), labels)
    low, high = predictions.interval
    assert 0 <= low <= high <= 1
    assert low - 1e-12 <= predictions.accuracy <= high + 1e-12


def test_intervals_do_not_depend_on_the_order_of_draws_and_images() -> None:
    rng = np.random.default_rng(0)
    probs, labels = softmax_table(0), rng.integers(0, 3, 11)
    draws, images = rng.permutation(7), rng.permutation(11)
    before = Predictions.from_probs(probs, labels)
    after = Predictions.from_probs(probs[draws][:, images], labels[images])
    only_images = Predictions.from_probs(probs[:, images], labels[images])
    assert only_images.interval == pytest.approx(before.interval, abs=1e-12)
    assert after.draw_interval == pytest.approx(before.draw_interval, abs=1e-12)


def test_draws_that_err_together_widen_the_interval() -> None:
    together = np.zeros((DRAWS, IMAGES), bool)
    together[: DRAWS // 2] = True
    apart = np.indices(together.shape).sum(0) % 2 == 0
    width = {name: np.ptp(metrics.draw_interval(table)) for name, table in (("t", together), ("a", apart))}
    assert width["t"] > 2 * width["a"]


@pytest.mark.parametrize("q", [0.99, 0.95, 0.9, 0.5])
def test_draw_interval_covers_where_draws_and_images_err_independently(q: float) -> None:
    def sample(rng: np.random.Generator) -> tuple[float, Interval]:
        return q, metrics.draw_interval(rng.random((DRAWS, IMAGES)) < q)

    assert COVERAGE[0] <= coverage(sample) <= COVERAGE[1]


@pytest.mark.parametrize(
    ("level", "by_draw", "by_image"),
    [(2, 0.5, 1), (2, 1, 1), (2, 0.5, 3), (0, 1, 2), (3, 1, 2), (2, 2, 0), (4, 1, 1), (1, 0, 3)],
)
def test_draw_interval_covers_crossed_effects_of_draws_and_images(
    level: float, by_draw: float, by_image: float
) -> None:
    normal = np.random.default_rng(99).standard_normal(1_000_000)
    truth = float(expit(level + math.hypot(by_draw, by_image) * normal).mean())

    def sample(rng: np.random.Generator) -> tuple[float, Interval]:
        right = crossed(rng, level, by_draw, by_image, 0.0, DRAWS, IMAGES)
        return truth, metrics.draw_interval(rng.random(right.shape) < right)

    assert COVERAGE[0] <= coverage(sample) <= COVERAGE[1]


@pytest.mark.parametrize(
    ("level", "by_draw", "by_image", "by_both"),
    # The last two are draws of which many are wrong on nearly all images; the interval is then a little narrow.
    [(1, 0, 0, 4), (0.3, 0, 2, 2), (0.5, 0.5, 2, 2), (1, 0.5, 1, 0.5), (2, 1, 1, 1), (1, 2, 1, 1), (1, 3, 0.3, 0.3)],
)
def test_ensemble_interval_covers_other_images_and_other_sets_of_draws(
    level: float, by_draw: float, by_image: float, by_both: float
) -> None:
    def probabilities(rng: np.random.Generator, images: int) -> NDArray[np.float64]:
        return crossed(rng, level, by_draw, by_image, by_both, DRAWS, images)

    rng = np.random.default_rng(99)
    truth = float(np.mean([(probabilities(rng, 200).mean(0) > 0.5).mean() for _ in range(2_000)]))

    def sample(rng: np.random.Generator) -> tuple[float, Interval]:
        right = probabilities(rng, IMAGES)
        table = np.stack([right, 1 - right], 2)
        return truth, Predictions.from_probs(table, np.zeros(IMAGES, np.int64)).interval

    least = COVERAGE[0] if by_draw < 2 else 0.9
    assert least <= coverage(sample) <= COVERAGE[1]


def crossed(
    rng: np.random.Generator, level: float, by_draw: float, by_image: float, by_both: float, draws: int, images: int
) -> NDArray[np.float64]:
    """The label's probability `(draws, images)`: Gaussian effects of draw, image and both on the logit scale."""
    logit = level + by_draw * rng.standard_normal((draws, 1)) + by_image * rng.standard_normal((1, images))
    if by_both:
        logit = logit + by_both * rng.standard_normal((draws, images))
    probability: NDArray[np.float64] = expit(logit)
    return probability


def coverage(sample: Sampler) -> float:
    """How often the interval that `sample` returns holds the truth that it returns."""
    rng = np.random.default_rng(0)
    results = [sample(rng) for _ in range(REPETITIONS)]
    return float(np.mean([low <= truth <= high for truth, (low, high) in results]))


# Predictions


def test_predictions_summarise_draws_by_hand() -> None:
    first = np.array([0.9, 0.2, 0.3])  # probability of class 0 in each draw
    second = np.array([0.6, 0.8, 0.7])
    probs = np.stack([np.stack([p, 1 - p], 1) for p in (first, second)], 1)
    predictions = Predictions.from_probs(probs, np.array([1, 1]))
    assert len(predictions) == 2
    assert predictions.draws == 3
    np.testing.assert_allclose(predictions.mean_probs, [[1.4 / 3, 1.6 / 3], [0.7, 0.3]], rtol=1e-6)
    np.testing.assert_array_equal(predictions.votes, [[1, 2], [3, 0]])
    np.testing.assert_array_equal(predictions.correct, [[False, False], [True, False], [True, False]])
    np.testing.assert_array_equal(predictions.ensemble_correct, [True, False])
    assert predictions.accuracy == 0.5
    assert predictions.draw_accuracy == pytest.approx(2 / 6)
    np.testing.assert_allclose(predictions.draw_accuracies, [0, 0.5, 0.5])


@pytest.mark.parametrize("right", [(0.9, 0.2, 0.2), (0.99, 0.4, 0.05), (0.6, 0.55, 0.1)])
def test_resampled_verdicts_have_the_probability_of_their_enumeration(right: tuple[float, float, float]) -> None:
    column = np.array(right)
    probs = np.stack([column, 1 - column], 1)[:, None]
    predictions = Predictions.from_probs(probs, np.array([0]))
    exact = np.mean([np.mean(resample) > 0.5 for resample in product(right, repeat=3)])
    error = 4 * math.sqrt(exact * (1 - exact) / metrics.RESAMPLES)
    assert predictions.resampled_share[0] == pytest.approx(exact, abs=error)
    assert predictions.resampled_accuracy.mean() == pytest.approx(predictions.resampled_share.mean())


def test_resamples_are_the_same_for_many_images_as_for_few() -> None:
    probs, labels = softmax_table(3, images=3_000), np.zeros(3_000, np.int64)
    whole = Predictions.from_probs(probs, labels)
    part = Predictions.from_probs(probs[:, 2_900:], labels[2_900:])
    np.testing.assert_array_equal(whole.resampled_share[2_900:], part.resampled_share)


def test_one_draw_resampled_is_the_ensemble_itself() -> None:
    predictions = Predictions.from_probs(softmax_table(1, draws=1), np.zeros(11, np.int64))
    np.testing.assert_array_equal(predictions.resampled_share, predictions.ensemble_correct)
    assert predictions.draw_accuracy == predictions.accuracy
    assert predictions.draw_interval == predictions.interval


def test_stored_arrays_make_equal_predictions() -> None:
    predictions = Predictions.from_probs(softmax_table(2), np.arange(11) % 3)
    again = Predictions(**predictions.arrays())  # type: ignore[arg-type]
    assert again.interval == predictions.interval
    np.testing.assert_array_equal(metrics.uncertainty(again).total, metrics.uncertainty(predictions).total)


@pytest.mark.parametrize(
    ("shape", "labels"),
    [((0, 3, 2), (3,)), ((2, 0, 2), (0,)), ((2, 3, 0), (3,)), ((2, 3, 2), (2,)), ((2, 3, 2), (3, 1)), ((3, 2), (3,))],
)
def test_empty_or_disagreeing_shapes_are_refused_in_one_line(shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^predictions: expected non-empty probabilities [^\n]*$"):
        Predictions.from_probs(np.full(shape, 0.5), np.zeros(labels, np.int64))


# Uncertainty


def test_uncertainties_by_hand() -> None:
    first = np.array([1.0, 0.5, 0.9])  # each image's probability of class 0, by draw
    second = np.array([0.0, 0.5, 0.7])
    probs = np.stack([np.stack([p, 1 - p], 1) for p in (first, second)])
    found = metrics.uncertainty(Predictions.from_probs(probs, np.zeros(3, np.int64)))
    mean_of_last = (binary_entropy(0.9) + binary_entropy(0.7)) / 2
    total = [math.log(2), math.log(2), binary_entropy(0.8)]
    aleatoric = [0, math.log(2), mean_of_last]
    square = ((0.81 + 0.01) + (0.49 + 0.09)) / 2
    np.testing.assert_allclose(found.total, total, atol=1e-6)
    np.testing.assert_allclose(found.aleatoric, aleatoric, atol=1e-6)
    np.testing.assert_allclose(found.epistemic, np.subtract(total, aleatoric), atol=1e-6)
    np.testing.assert_allclose(found.variation_ratio, [0.5, 0, 0])
    np.testing.assert_allclose(found.model_variance, [0.5, 0, square - (0.64 + 0.04)], atol=1e-6)


def test_variation_ratio_counts_the_draws_that_leave_the_commonest_class() -> None:
    votes = np.array([0, 1, 1, 2, 1])
    predictions = Predictions.from_probs(np.eye(3)[votes][:, None], np.array([0]))
    np.testing.assert_allclose(metrics.uncertainty(predictions).variation_ratio, [1 - 3 / 5])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 5))
def test_uncertainties_keep_their_bounds(seed: int, draws: int, classes: int) -> None:
    probs = softmax_table(seed, draws, 9, classes)
    found = metrics.uncertainty(Predictions.from_probs(probs, np.zeros(9, np.int64)))
    assert (found.total <= math.log(classes) + 1e-6).all()
    assert (found.aleatoric <= found.total + 1e-5).all()
    assert all((values >= 0).all() for values in found)
    assert (found.variation_ratio <= 1 - 1 / min(draws, classes) + 1e-12).all()
    np.testing.assert_allclose(found.epistemic, found.total - found.aleatoric, atol=1e-6)
    np.testing.assert_allclose(found.model_variance, probs.var(0).sum(1), atol=ROUNDING)


def test_a_single_draw_has_no_epistemic_uncertainty() -> None:
    found = metrics.uncertainty(Predictions.from_probs(softmax_table(3, draws=1), np.zeros(11, np.int64)))
    np.testing.assert_allclose(found.epistemic, 0, atol=1e-6)
    np.testing.assert_allclose(found.model_variance, 0, atol=1e-6)
    np.testing.assert_array_equal(found.variation_ratio, 0)


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


# Affinity


@pytest.mark.parametrize(
    ("clean", "transfer", "white_box", "expected"),
    [(0.9, 0.9, 0.3, 0.0), (0.9, 0.3, 0.3, 1.0), (0.9, 0.6, 0.3, 0.5), (0.8, 0.2, 0.4, 1.5), (0.8, 0.9, 0.4, -0.25)],
)
def test_affinity_by_hand(clean: float, transfer: float, white_box: float, expected: float) -> None:
    found = metrics.affinity(clean, transfer, white_box)
    assert found.value == pytest.approx(expected)
    assert found.reason == ""


@pytest.mark.parametrize("white_box", [0.7, 0.8])
def test_affinity_is_undefined_where_the_target_is_not_hurt(white_box: float) -> None:
    found = metrics.affinity(0.7, 0.2, white_box)
    assert math.isnan(found.value)
    assert found.reason == "the attack on the target itself does not lower its accuracy"


@pytest.mark.parametrize("missing", range(3))
def test_affinity_is_undefined_where_an_accuracy_is_missing(missing: int) -> None:
    accuracies = [0.9, 0.5, 0.3]
    accuracies[missing] = math.nan
    found = metrics.affinity(*accuracies)
    assert math.isnan(found.value)
    assert found.reason == "an accuracy is missing"


# Retention


def test_retention_by_hand() -> None:
    correct = np.array([False, True, True, False, True])
    scores = np.array([0.5, 0.1, 0.4, 0.3, 0.2])  # surest first: right, right, wrong, right, wrong
    found = metrics.retention(correct, scores)
    assert found.fractions == (0.2, 0.4, 0.6, 0.8, 1.0)
    assert found.counts == (1, 2, 3, 4, 5)
    assert found.accuracies == pytest.approx((1, 1, 2 / 3, 3 / 4, 3 / 5))
    steps = [1, 1, (1 + 2 / 3) / 2, (2 / 3 + 3 / 4) / 2, (3 / 4 + 3 / 5) / 2]
    assert found.area == pytest.approx(0.2 * sum(steps))


def test_images_of_equal_score_count_with_the_mean_of_their_group() -> None:
    correct = np.array([True, True, False, False, False])
    scores = np.array([0.0, 1.0, 1.0, 1.0, 2.0])
    found = metrics.retention(correct, scores)
    assert found.accuracies == pytest.approx((1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 2 / 4, 2 / 5))


def test_retention_of_equal_scores_is_the_accuracy_throughout() -> None:
    correct = np.arange(10) < 7
    found = metrics.retention(correct, np.ones(10))
    assert found.accuracies == pytest.approx((0.7,) * 5)
    assert found.area == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_retention_hold_its_values(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, 40)
    predictions = Predictions.from_probs(softmax_table(seed, images=40), labels)
    scores = metrics.uncertainty(predictions).total
    found = metrics.retention(predictions.ensemble_correct, scores, draws=metrics.shared_spread(predictions))
    pairs = [*zip(found.accuracies, found.intervals, strict=True), (found.area, found.area_interval)]
    assert all(0 <= low <= value <= high <= 1 for value, (low, high) in pairs)
    alone = metrics.retention(predictions.ensemble_correct, scores)
    assert np.ptp(alone.area_interval) <= np.ptp(found.area_interval)
    assert alone.intervals[-1] == pytest.approx(metrics.wilson(predictions.accuracy, 39, 39), abs=1e-3)


def test_the_variance_of_a_retained_accuracy_is_that_of_resampled_images() -> None:
    """The closed form against the bootstrap, which ranks anew at each resample; where g is known from many images."""
    rng = np.random.default_rng(0)
    scores = rng.random(2000)
    correct = rng.random(2000) < 1 - 0.6 * scores
    found = metrics.retention(correct, scores)
    areas, accuracies = [], []
    for _ in range(400):
        index = rng.integers(0, 2000, 2000)
        again = metrics.retention(correct[index], scores[index])
        areas.append(again.area)
        accuracies.append(again.accuracies)
    quantile = 2 * 1.96
    assert np.ptp(found.area_interval) == pytest.approx(quantile * np.std(areas), rel=0.12)
    assert np.ptp(found.intervals, 1) == pytest.approx(quantile * np.std(accuracies, 0), rel=0.15)


@pytest.mark.parametrize(
    ("level", "by_draw", "by_image", "by_both", "images"),
    [
        (1, 0, 2, 1, 50),
        (0.5, 0.5, 2, 2, 50),
        (0.3, 0, 2, 2, 50),
        (1, 1, 2, 1, 50),
        *(pytest.param(*case, 300, marks=pytest.mark.slow) for case in [(1, 0, 2, 1), (0.5, 0.5, 2, 2), (1, 1, 2, 1)]),
        pytest.param(1, 0.5, 1, 0.5, 300, marks=pytest.mark.slow),
    ],
)
def test_the_interval_of_the_area_covers_other_images_and_other_sets_of_draws(
    level: float, by_draw: float, by_image: float, by_both: float, images: int
) -> None:
    def predictions(rng: np.random.Generator, count: int, *, enumerated: bool) -> Predictions:
        right = crossed(rng, level, by_draw, by_image, by_both, DRAWS, count)
        return Predictions.from_probs(np.stack([right, 1 - right], 2), np.zeros(count, np.int64), enumerated=enumerated)

    def curve(found: Predictions) -> metrics.Retention:
        scores = metrics.uncertainty(found).total
        return metrics.retention(found.ensemble_correct, scores, draws=metrics.shared_spread(found))

    rng = np.random.default_rng(99)
    truth = float(np.mean([curve(predictions(rng, 600, enumerated=True)).area for _ in range(300)]))

    def sample(rng: np.random.Generator) -> tuple[float, Interval]:
        return truth, curve(predictions(rng, images, enumerated=False)).area_interval

    assert COVERAGE[0] <= coverage(sample) <= COVERAGE[1]


@pytest.mark.parametrize("kept", [0.5, 0.95, 1.0])
def test_accepted_errors_by_hand(kept: float) -> None:
    clean = np.arange(20) / 20
    correct = np.array([False, False, True, False])
    scores = np.array([0.2, 0.9, 0.1, 2.0])
    assert metrics.accepted_errors(correct, scores, clean, kept) == {0.5: 0.25, 0.95: 0.5, 1.0: 0.5}[kept]


def test_retention_keeps_at_least_one_image() -> None:
    found = metrics.retention(np.array([True, False]), np.array([0.0, 1.0]))
    assert found.counts == (1, 1, 1, 2, 2)
    assert found.accuracies == pytest.approx((1, 1, 1, 0.5, 0.5))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30), st.randoms())
def test_retention_does_not_depend_on_the_order_of_the_images(images: list[tuple[bool, int]], random: Random) -> None:
    def measure(rows: list[tuple[bool, int]]) -> metrics.Retention:
        return metrics.retention(np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows]))

    shuffled = list(images)
    random.shuffle(shuffled)
    assert measure(shuffled) == measure(images)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), min_size=1, max_size=30))
def test_keeping_every_image_gives_the_accuracy(images: list[tuple[bool, float]]) -> None:
    correct = np.array([right for right, _ in images])
    found = metrics.retention(correct, np.array([score for _, score in images]))
    assert found.accuracies[-1] == pytest.approx(correct.mean())
    assert 0 <= found.area <= 1 + 1e-12


# Detection


@pytest.mark.parametrize(
    ("negatives", "positives", "expected"),
    [
        ([0.1, 0.4], [0.35, 0.8], (0.75, 5 / 6, 5 / 6)),
        ([0.0, 0.1], [0.2, 0.3], (1, 1, 1)),
        ([0.2, 0.3], [0.0, 0.1], (0, (1 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 2) / 2)),
        ([1.0, 1.0, 1.0], [1.0], (0.5, 0.25, 0.75)),
    ],
)
def test_detection_by_hand(negatives: list[float], positives: list[float], expected: tuple[float, ...]) -> None:
    assert metrics.detection(np.array(negatives), np.array(positives)) == pytest.approx(expected)


def test_detection_agrees_with_scikit_learn_with_ties_and_uneven_classes() -> None:
    rng = np.random.default_rng(0)
    negatives, positives = rng.integers(0, 6, 40) / 4, rng.integers(2, 9, 15) / 4
    scores, truth = np.r_[negatives, positives], np.r_[np.zeros(40), np.ones(15)]
    found = metrics.detection(negatives, positives)
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    assert found.aupr_positive == pytest.approx(average_precision_score(truth, scores))
    assert found.aupr_negative == pytest.approx(average_precision_score(1 - truth, -scores))


@pytest.mark.parametrize(("negatives", "positives"), [([], [1.0]), ([1.0], [])])
def test_detection_without_one_of_the_classes_is_refused(negatives: list[float], positives: list[float]) -> None:
    with pytest.raises(InputError, match=r"^detection: expected at least one positive and one negative score"):
        metrics.detection(np.array(negatives), np.array(positives))


# Posteriors of finitely many members


@pytest.mark.filterwarnings("ignore:.*order of the classes:advbench.errors.ModelWarning")  # confident members disagree
@pytest.mark.parametrize(("members", "draws", "enumerated"), [(3, 2, True), (4, 2, True), (5, 2, False), (1, 4, False)])
def test_few_members_are_enumerated(members: int, draws: int, enumerated: bool) -> None:
    net = small_net().eval()
    samples = torch.randn((members, FlatLayout(net).size), generator=torch.Generator().manual_seed(1))
    clf = Classifier(net, SamplePosterior(net, samples)).requires_grad_(False)
    x, y = small_data().batch(slice(20))
    found = advbench.evaluate(clf, x, y, draws)
    assert found.enumerated == enumerated
    assert found.draws == (members if enumerated else min(draws, members))
    assert Predictions.from_bytes(found.to_bytes()).enumerated == enumerated
    if enumerated:
        probs = torch.stack([clf.at(clf.member(k), x) for k in range(members)]).softmax(-1)
        np.testing.assert_allclose(found.mean_probs, probs.mean(0), atol=1e-6)
        assert found.accuracy == float((probs.mean(0).argmax(1) == y).double().mean())
        assert found.draw_accuracy == pytest.approx(float((probs.argmax(-1) == y).float().mean()))
        assert found.interval == metrics.wilson(found.accuracy, 20)
        assert metrics.shared_spread(found).variance == 0
        assert advbench.evaluate(clf, x, y, draws, seed=9).draw_interval == found.draw_interval


@pytest.mark.parametrize(("by_member", "by_image"), [(0, 1), (2, 1), (3, 0.3), (0.5, 3)])
def test_intervals_of_an_enumerated_posterior_cover_other_images(by_member: float, by_image: float) -> None:
    """Its members stay the same, so the truth is theirs: what they differ by widens nothing."""
    members, rng = 5, np.random.default_rng(0)
    level = 1 + by_member * rng.standard_normal((members, 1))
    many = expit(level + by_image * rng.standard_normal(200_000))
    single, ensemble = float(many.mean()), float((many.mean(0) > 0.5).mean())
    covered = np.zeros(2)
    for _ in range(REPETITIONS):
        right = expit(level + by_image * rng.standard_normal(IMAGES))
        said = rng.random(right.shape) < right
        probs = np.stack([1 - right, right], -1)
        found = Predictions.from_probs(probs, np.ones(IMAGES, np.int64), enumerated=True)
        low, high = metrics.draw_interval(said, enumerated=True)
        covered += low <= single <= high, found.interval.low <= ensemble <= found.interval.high
    assert COVERAGE[0] <= covered[0] / REPETITIONS <= COVERAGE[1]
    assert covered[1] / REPETITIONS >= COVERAGE[0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 5))
def test_resampling_only_disputed_images_is_resampling_all(seed: int, draws: int, classes: int) -> None:
    probs = softmax_table(seed, draws, 12, classes)
    labels = np.random.default_rng(seed).integers(0, classes, 12)
    found = Predictions.from_probs(probs, labels)
    weights = np.random.default_rng(0).multinomial(draws, np.full(draws, 1 / draws), 200) / draws
    right = np.einsum("rk,knc->rnc", weights, probs.astype(np.float64)).argmax(2) == labels
    np.testing.assert_array_equal(found.resampled_share, right.mean(0))
    np.testing.assert_array_equal(found.resampled_accuracy, right.mean(1))
