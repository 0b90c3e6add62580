"""Whether intervals of accuracies can be those of so many images and draws.

Every interval is Wilson's at some c = z^2 / size, so its two ends are the roots x of (x - mean)^2 = c x (1 - x): one
end tells c, and c the other end. Images alone set the least c, and what draws can differ at all sets the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from advbench.evaluation import RESAMPLES, Interval, student_quantile, wilson

TOLERANCE = 1e-9
NORMAL = float(student_quantile(math.inf)) ** 2  # the square of the normal quantile
LOOSE = 1e-6  # of an end that was found from the other
STEPS = 65  # of the search for the widest interval of a single draw's accuracy
SLACK = 2.0  # factor on c, for what lies between those steps

Row = Mapping[str, Any]


def implausible_intervals(row: Row) -> Iterator[str]:
    """What of a row's two intervals cannot be.

    Args:
        row: of results, with a result, whose accuracies are in [0, 1] and whose intervals hold them.
    """
    images, draws = row["n_examples"], row["draws"]
    for head, mean in (("accuracy", row["accuracy"]), ("draw_accuracy", row["draw_accuracy_mean"])):
        found = Interval(row[f"{head}_low"], row[f"{head}_high"])
        if draws == 1:
            if not _close(found, wilson(mean, images)):
                yield f"the interval of {head} of one draw is not Wilson's"
        elif mean in (0.0, 1.0):
            yield from _at_the_edge(head, mean, found, wilson(mean, images))
        else:
            size, most = images * draws, math.inf
            if head == "accuracy":
                size, most = images, _most_of_ensemble(mean, images, draws)
            elif (
                _spread(mean, found) > 2 * NORMAL / images
            ):  # what is less is never too much, and the search takes long
                most = _most_of_draw(row)
            if problem := _between(mean, found, wilson(mean, size), most):
                yield f"the interval of {head} {problem}"


def _at_the_edge(head: str, mean: float, found: Interval, due: Interval) -> Iterator[str]:
    """Where all images are right, or none: other draws may find otherwise, which only widens the interval inwards."""
    if head == "draw_accuracy":
        if not _close(found, due):
            yield f"the interval of {head} of draws that agree is not Wilson's"
    elif abs(found.high - due.high if mean else found.low - due.low) > TOLERANCE:
        yield f"the interval of {head} does not end where it must"
    elif found.low > due.low + TOLERANCE or found.high < due.high - TOLERANCE:
        yield f"the interval of {head} is narrower than so many images allow"


def _between(mean: float, found: Interval, least: Interval, most: float) -> str:
    """What is wrong with an interval of a mean within (0, 1); empty if nothing is."""
    if found.low > least.low + TOLERANCE or found.high < least.high - TOLERANCE:
        return "is narrower than so many images allow"
    c = _spread(mean, found)
    if not 0 < c <= most:
        return "is wider than so many draws can make it"
    due = wilson(mean, NORMAL / c)
    if abs(due.low - found.low) > LOOSE or abs(due.high - found.high) > LOOSE:
        return "has ends that do not belong together"
    return ""


def _spread(mean: float, found: Interval) -> float:
    """The c of an interval, from the end that lies further from 0 or 1 and so tells it more precisely."""
    end = found.low if found.low > 1 - found.high else found.high
    return (end - mean) ** 2 / (end * (1 - end)) if 0 < end < 1 else math.inf


def _most_of_ensemble(mean: float, images: float, draws: float) -> float:
    """The largest c of an ensemble's interval: half of all sets of draws right everywhere, half of them nowhere."""
    drawn = RESAMPLES / (RESAMPLES - 1) / 4 * draws / (draws - 1)
    variance = drawn + mean * (1 - mean) / images
    freedom = (draws - 1) * (variance / drawn) ** 2
    return float(student_quantile(freedom)) ** 2 * variance / (mean * (1 - mean)) * (1 + LOOSE)


def _most_of_draw(row: Row) -> float:
    """The largest c of a single draw's interval that the least, mean and largest accuracy of the draws leave possible.

    The parts of `draw_interval`, in units of the whole: draws D, images I and rest R, bound by
    (K - 1) D + (N - 1) I + (K - 1) (N - 1) R = p (1 - p). The extremes of the draws bound D.
    """
    draws, images = row["draws"], row["n_examples"]
    mean, low, high = (row[f"draw_accuracy_{name}"] for name in ("mean", "min", "max"))
    whole, others = mean * (1 - mean), max(1.0, images - 1)
    least = min((high - low) ** 2 / 2 / draws, whole) / (draws - 1)
    most = min((high - mean) * (mean - low), whole) / (draws - 1)
    drawn = np.linspace(least, max(least, most), STEPS)[:, None]
    left = whole - (draws - 1) * drawn
    of_images = np.linspace(0, 1, STEPS)[None] * left / others
    rest = np.maximum(0, left - others * of_images) / ((draws - 1) * others)
    variance = np.maximum(drawn + of_images - rest, whole / (draws * images))
    scatter = drawn**2 / (draws - 1) + of_images**2 / others + rest**2 / ((draws - 1) * others)
    freedom = variance**2 / np.maximum(scatter, np.finfo(np.float64).tiny)
    widest = float(np.max(student_quantile(freedom) ** 2 * variance))
    return widest / float(whole) * SLACK


def _close(one: Interval, other: Interval) -> bool:
    return all(abs(here - there) <= TOLERANCE for here, there in zip(one, other, strict=True))
