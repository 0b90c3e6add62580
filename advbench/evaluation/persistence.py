"""What an adversary gains who may ask a random classifier again."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advbench.evaluation.predictions import Bools, Interval, Spread, combined, draw_spread, wilson

TRIES = (1, 5, 20)


class Persistence(NamedTuple):
    """How many images a persistent adversary breaks.

    Attributes:
        tries: answers that the adversary asks for, each by a fresh draw.
        broken: share of images on which at least one of them is wrong, as a fraction.
        interval: 95 % interval of that for other images and draws.
    """

    tries: int
    broken: float
    interval: Interval


def persistence(correct: Bools, tries: tuple[int, ...] = TRIES, *, enumerated: bool = False) -> tuple[Persistence, ...]:
    """The share of images on which one of R independent answers is wrong.

    Of K draws of which r are right on an image, all of R are right with probability C(r, R) / C(K, R): unbiased for
    every R up to K, and left out above that. Of M enumerated members, of which each answer is one, it is (r / M)^R.

    The interval is that of a single draw's accuracy (`draw_interval`), at the jackknife's pseudo-values in place of the
    table of verdicts: at R = 1 these are the verdicts. Simulated with 20 draws it covers in 92 to 99 % of cases; at
    R = 20 in 88 % where one rare draw in many is wrong on most images.

    Args:
        correct: whether each draw is right on each image, `(K, N)`.
        tries: numbers of answers R.
        enumerated: whether the draws are all members, each once; a deterministic classifier has one.
    """
    return tuple(_persistence(correct, each, enumerated) for each in tries if enumerated or each <= len(correct))


def _persistence(correct: Bools, tries: int, enumerated: bool) -> Persistence:
    draws, right = len(correct), correct.sum(0)
    survive = (right / draws) ** tries if enumerated else _all_right(right, draws, tries)
    low, high = _interval(correct, survive, tries, enumerated)
    mean = float(survive.mean())
    return Persistence(tries, 1 - mean, Interval(1 - max(high, mean), 1 - min(low, mean)))


def _interval(correct: Bools, survive: NDArray[np.float64], tries: int, enumerated: bool) -> Interval:
    """Of the mean of `survive`."""
    draws, count = correct.shape
    mean = float(survive.mean())
    if count == 1 or min(mean, 1 - mean) < 1e-12 or (correct == correct[:1]).all():
        return wilson(mean, count)
    images = Spread(float(survive.var(ddof=1)) / count, count - 1)
    by_draws = rest = Spread(0.0, 1)
    if not enumerated:
        right = correct.sum(0)
        if tries < draws:
            table = draws * survive - (draws - 1) * _all_right(right - correct, draws - 1, tries)
        else:  # no draw can be left out: how the share changes with that of right draws
            share = right / draws
            table = survive + tries * (correct - share) * share ** (tries - 1)
        by_draws, rest = draw_spread(table)
    return combined(mean, by_draws, images, rest, least=mean * (1 - mean) / (draws * count))


def _all_right(right: NDArray[np.int64], draws: int, tries: int) -> NDArray[np.float64]:
    """C(right, tries) / C(draws, tries), as a product of at most `tries` shares."""
    shares = [np.maximum(right - k, 0) / (draws - k) for k in range(tries)]
    result: NDArray[np.float64] = math.prod(shares[1:], start=shares[0])
    return result
