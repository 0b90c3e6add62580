"""The area under accuracies over radii, and differences on the same images, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.evaluation.predictions import Floats, Interval, Spread, student_quantile, wilson

FEW = 2  # images that verdicts which hardly differ are counted to vary by


def area_weights(radii: Sequence[float]) -> Floats:
    """What each radius counts in the area: trapezoids over the radii, divided by their span; sums to 1.

    Args:
        radii: ascending, each once; a single one counts 1.
    """
    if len(radii) == 1:
        return np.ones(1)
    areas = np.trapezoid(np.eye(len(radii)), radii, axis=0)
    return np.asarray(areas / (radii[-1] - radii[0]), np.float64)


def area_interval(scores: Floats, weights: Floats, draws: Spread) -> Interval:
    """95 % interval of an area for other images, and other seeds of the training or other draws.

    Seeds and images are crossed, as draws and images are in `draw_interval`: the variance is made of the mean squares
    of the table, its degrees of freedom are Satterthwaite's, and the interval is Wilson's at them. Where images hardly
    differ, two of them are counted as if each radius's verdict differed on them, though never for more than the
    variance of a proportion.

    Args:
        scores: sum over the radii of weight and verdict, `(seeds, N)`, in [0, 1].
        weights: of the radii, as `area_weights`.
        draws: of the area, from the choice of draws; of one seed alone, since several vary by it already.

    Returns:
        Its ends. With one seed they say nothing of other trainings.
    """
    count, mean = scores.shape[1], float(scores.mean())
    if min(mean, 1 - mean) < 1e-9:
        return wilson(round(mean), count)
    variance, freedom = _crossed(scores[None], [draws])
    largest = mean * (1 - mean) / count
    total = max(float(variance[0]), min(FEW * float(np.square(weights).sum()) / count**2, largest))
    return wilson(mean, mean * (1 - mean) / total, float(freedom[0]))


def difference_intervals(differences: Floats, weights: Floats, draws: Sequence[Spread]) -> Floats:
    """95 % intervals of mean differences on the same images, for other images, and other seeds or draws.

    By Student's t at the variance that `area_interval` has, and in addition that of two images on which each verdict
    differs, one either way: of verdicts that hardly differ the sample's variance is often 0. Of a single verdict this
    is what Agresti and Min (2005) add.

    Args:
        differences: of the scores of two classifiers or attacks, `(pairs, seeds, N)`, in [-1, 1].
        weights: of the verdicts that a score is the sum of, `(verdicts,)`.
        draws: of each difference, from the choice of draws; of one seed alone, as in `area_interval`.

    Returns:
        `(pairs, 2)`.
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
