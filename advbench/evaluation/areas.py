"""Area under accuracy over radii, and paired differences, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.evaluation.predictions import Floats, Interval, Spread, student_quantile, wilson

FEW = 2  # number of images added where predictions hardly differ


def area_weights(radii: Sequence[float]) -> Floats:
    """Weight of each radius in the area: trapezoids over the radii divided by their span; sums to 1.

    Args:
        radii: distinct radii, ascending; a single one has weight 1.
    """
    if len(radii) == 1:
        return np.ones(1)
    areas = np.trapezoid(np.eye(len(radii)), radii, axis=0)
    return np.asarray(areas / (radii[-1] - radii[0]), np.float64)


def area_interval(scores: Floats, weights: Floats, draws: Spread) -> Interval:
    """95 % interval of an area over images, and over training seeds or draws.

    Seeds and images are crossed, like draws and images in `draw_interval`: the variance follows from the mean squares
    of the table, with Satterthwaite's degrees of freedom, and the interval is Wilson's. If images hardly differ, two of
    them are counted as differing at every radius, up to the variance of a proportion.

    Args:
        scores: weighted sum over the radii of correct predictions, `(seeds, N)`, in [0, 1].
        weights: weights of the radii, as from `area_weights`.
        draws: variance of the area due to draws; only with one seed, because the variation of several seeds includes
            it.

    Returns:
        The interval. With one seed it does not cover other trainings.
    """
    count, mean = scores.shape[1], float(scores.mean())
    if min(mean, 1 - mean) < 1e-9:
        return wilson(round(mean), count)
    variance, freedom = _crossed(scores[None], [draws])
    largest = mean * (1 - mean) / count
    total = max(float(variance[0]), min(FEW * float(np.square(weights).sum()) / count**2, largest))
    return wilson(mean, mean * (1 - mean) / total, float(freedom[0]))


def difference_intervals(differences: Floats, weights: Floats, draws: Sequence[Spread]) -> Floats:
    """95 % intervals of paired mean differences, over images, and over seeds or draws.

    Uses Student's t with the variance of `area_interval` plus that of two images on which all predictions differ, one
    in each direction, because the sample variance is often 0 if predictions hardly differ. For a single prediction this
    is the addition of Agresti and Min (2005).

    Args:
        differences: differences of the scores of two classifiers or attacks, `(pairs, seeds, N)`, in [-1, 1].
        weights: weights of the predictions in a score, `(predictions,)`.
        draws: variance of each difference due to draws; only with one seed, as in `area_interval`.

    Returns:
        Lower and upper ends, `(pairs, 2)`.
    """
    variance, freedom = _crossed(differences, draws)
    few = FEW * float(np.square(weights).sum()) / differences.shape[2] ** 2
    half = student_quantile(freedom) * np.sqrt(variance + few)
    mean = differences.mean((1, 2))
    return np.stack([mean - half, mean + half], 1)


def _crossed(tables: Floats, draws: Sequence[Spread]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance of the mean of each table of seeds and images, `(tables, seeds, N)`, and its degrees of freedom."""
    _, seeds, count = tables.shape
    columns = tables.mean(1)
    if seeds == 1:
        variance = columns.var(1) / count + np.array([each.variance for each in draws])
        scatter = np.array([each.variance**2 / each.freedom for each in draws])
    else:
        rows = tables.mean(2)
        residues = tables - rows[:, :, None] - columns[:, None] + rows.mean(1)[:, None, None]
        images = columns.var(1, ddof=min(1, count - 1)) / count
        left = (seeds - 1) * max(1, count - 1)
        rest = np.square(residues).sum((1, 2)) / left / (seeds * count)
        between = rows.var(1, ddof=1) / seeds
        variance = np.maximum(between + images - rest, rest)
        scatter = between**2 / (seeds - 1) + images**2 / max(1, count - 1) + rest**2 / left
    with np.errstate(divide="ignore", invalid="ignore"):
        known = np.where(scatter > 0, variance**2 / scatter, math.inf)
    return variance, known
