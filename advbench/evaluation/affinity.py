"""Affinity between defenses: how well attacks transfer (Adv-BNN eq. 17), with intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advbench.evaluation.predictions import Bools, Floats, student_quantile

MISSING = "an accuracy is missing"
HARMLESS = "the attack on the target itself does not lower its accuracy"


class Affinity(NamedTuple):
    """Affinity of A to B, or NaN and the reason if it is undefined."""

    value: float
    reason: str = ""


def affinity(clean: float, transfer: float, white_box: float) -> Affinity:
    """rho[A -> B] = (Acc[B] - Acc[B|A]) / (Acc[B] - Acc[B|B]) (Adv-BNN eq. 17).

    All three accuracies belong to the same target B, images and eps. The affinity is 0 if attacks on A do not affect B,
    and 1 if they are as strong as attacks on B itself.

    Args:
        clean: accuracy of B on clean images, Acc[B], as a fraction.
        transfer: accuracy of B on examples crafted on A, Acc[B|A].
        white_box: accuracy of B on examples crafted on itself, Acc[B|B].
    """
    if not all(map(math.isfinite, (clean, transfer, white_box))):
        return Affinity(math.nan, MISSING)
    if clean - white_box <= 0:
        return Affinity(math.nan, HARMLESS)
    return Affinity((clean - transfer) / (clean - white_box))


def affinities(accuracies: Floats) -> tuple[NDArray[np.float64], list[str]]:
    """Like `affinity`, for many pairs at once.

    Args:
        accuracies: clean, transfer and white-box accuracies, `(pairs, 3)`.

    Returns:
        Values `(pairs,)`, and for NaN the reasons.
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


def affinity_intervals(clean: Bools, transfer: Bools, white_box: Bools, spreads: Floats) -> Floats:
    """95 % intervals of affinities over images and draws, by Fieller's method (1954).

    The affinity is a ratio A / B of two drops in accuracy on the same images. The interval contains each ratio rho for
    which A - rho B lies within 1.96 standard errors of 0. One image is added on which the transfer and clean
    predictions differ, and one for the white box, because the sample variance is often 0 if hardly any predictions
    differ. The variance from the choice of draws is taken as independent between cells. If B itself is within 1.96
    standard errors of 0, the interval is unbounded: NaN. In simulations with 100 and 500 images the coverage is 93 to
    98 %, and higher if the attack is expected to change one image.

    Args:
        clean: mask of the clean images that the targets' ensembles classify correctly, `(pairs, N)`.
        transfer: the same on examples crafted on the sources.
        white_box: the same on examples crafted on the targets themselves.
        spreads: variance of the three accuracies due to the choice of draws, `(pairs, 3)`; 0 for deterministic targets.

    Returns:
        Lower and upper ends, `(pairs, 2)`.
    """
    count = clean.shape[1]
    fall, full = (clean.mean(1) - other.mean(1) for other in (transfer, white_box))
    both = ((clean != transfer) & (clean != white_box)).mean(1)  # images whose correctness changed under both
    by_clean, by_transfer, by_white = spreads.T
    extra = 1 / count**2
    variance = ((clean != transfer).mean(1) - fall**2) / count + extra + by_clean + by_transfer
    variance_full = ((clean != white_box).mean(1) - full**2) / count + extra + by_clean + by_white
    covariance = (both - fall * full) / count + by_clean
    square = float(student_quantile(math.inf)) ** 2
    quadratic = full**2 - square * variance_full
    linear = fall * full - square * covariance
    root = np.sqrt(np.maximum(linear**2 - quadratic * (fall**2 - square * variance), 0.0))
    known = (quadratic > 0) & (full > 0)
    ends = np.full((len(fall), 2), np.nan)
    ends[known] = (np.stack([linear - root, linear + root], 1)[known]) / quadratic[known, None]
    return ends
