"""How well attacks transfer between defenses (Adv-BNN eq. 17), with intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advbench.evaluation.predictions import CONFIDENCE, RESAMPLES, Bools, Floats

MISSING = "an accuracy is missing"
HARMLESS = "the attack on the target itself does not lower its accuracy"
UNDEFINED = 1e-12  # a denominator below that is none


class Affinity(NamedTuple):
    """How well attacks on A transfer to B, and the reason where that is undefined (then the value is NaN)."""

    value: float
    reason: str = ""


def affinity(clean: float, transfer: float, white_box: float) -> Affinity:
    """rho[A -> B] = (Acc[B] - Acc[B|A]) / (Acc[B] - Acc[B|B]) (Adv-BNN eq. 17).

    All three of one target B on the same images at one eps, as fractions: 0 where attacks on A do nothing to
    B, 1 where they hurt as much as attacks on B itself.

    Args:
        clean: accuracy of B on clean images, Acc[B].
        transfer: accuracy of B on examples crafted on A, Acc[B|A].
        white_box: accuracy of B on examples crafted on itself, Acc[B|B].
    """
    if not all(map(math.isfinite, (clean, transfer, white_box))):
        return Affinity(math.nan, MISSING)
    if clean - white_box <= 0:
        return Affinity(math.nan, HARMLESS)
    return Affinity((clean - transfer) / (clean - white_box))


def affinities(accuracies: Floats) -> tuple[NDArray[np.float64], list[str]]:
    """As `affinity`, of many pairs at once.

    Args:
        accuracies: clean, transfer and white-box, `(pairs, 3)`.

    Returns:
        Values `(pairs,)`, and the reasons of those that are NaN.
    """
    clean, transfer, white_box = accuracies.T
    missing = ~np.isfinite(accuracies).all(1)
    fall = clean - white_box
    harmless = ~missing & (fall <= 0)
    values = np.full(len(accuracies), np.nan)
    defined = ~missing & ~harmless
    values[defined] = (clean - transfer)[defined] / fall[defined]
    reasons = np.full(len(accuracies), "", object)
    reasons[missing], reasons[harmless] = MISSING, HARMLESS
    return values, reasons.tolist()


def resampled_accuracies(
    correct: Bools, spreads: Floats, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Accuracies of many cells at bootstrap resamples of their images, the same images in all cells.

    Cells of one resample belong together, so differences between them are paired. What the choice of draws does to a
    whole cell is added as normal noise of its variance, independent between cells: where two cells share their draws
    that counts too much, never too little.

    Args:
        correct: whether each cell's ensemble is right on each image, `(cells, N)`.
        spreads: variance of each cell's accuracy from the choice of its draws, `(cells,)`; 0 for deterministic ones.
        resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        `(cells, resamples)`, float64.
    """
    generator = np.random.default_rng(seed)
    count = correct.shape[1]
    weights = generator.multinomial(count, np.full(count, 1 / count), resamples)
    # Sums of whole numbers are exact in float32, so their order, which differs between machines, has no say.
    right = correct.astype(np.float32) @ weights.astype(np.float32).T
    accuracies: NDArray[np.float64] = right.astype(np.float64) / count
    random = np.flatnonzero(spreads > 0)
    noise = generator.standard_normal((len(random), resamples))
    accuracies[random] += noise * np.sqrt(spreads[random])[:, None]
    return accuracies


def affinity_intervals(clean: Floats, transfer: Floats, white_box: Floats) -> Floats:
    """95 % intervals of affinities, by the bootstrap's percentiles.

    A resample in which the attack on the target itself does nothing leaves the affinity without value or bound. Where
    that is more than 2.5 % of them the interval has no ends: NaN.

    Args:
        clean: accuracies of the targets at each resample, `(pairs, resamples)`, of `resampled_accuracies`.
        transfer: likewise, on examples crafted on the sources.
        white_box: likewise, on examples crafted on the targets themselves.

    Returns:
        `(pairs, 2)`.
    """
    fall = clean - white_box
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(fall > UNDEFINED, (clean - transfer) / fall, np.nan)
    lost = np.isnan(values).mean(1)
    tail = (1 - CONFIDENCE) / 2
    ends = np.full((len(values), 2), np.nan)
    known = lost <= tail
    if known.any():
        # Sorted, what is undefined comes last: it has a part in neither end.
        ordered = np.sort(values[known], axis=1)
        counts = (~np.isnan(ordered)).sum(1)
        for column, quantile in enumerate((tail, 1 - tail)):
            position = quantile * (counts - 1)
            below = np.floor(position).astype(np.int64)
            above = np.minimum(below + 1, counts - 1)
            rows = np.arange(len(ordered))
            share = position - below
            ends[known, column] = (1 - share) * ordered[rows, below] + share * ordered[rows, above]
    return ends
