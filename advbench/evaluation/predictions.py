"""Predictions of a classifier's draws on images, and intervals of the accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from advbench.errors import InputError

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

CONFIDENCE = 0.95
RESAMPLES = 200


class Interval(NamedTuple):
    """A confidence interval of a fraction."""

    low: float
    high: float


@dataclass(frozen=True)
class Predictions:
    """Summary of the predictions of K draws on N images, sufficient for all metrics.

    Attributes:
        labels: labels `(N,)`, int64.
        mean_probs: mean softmax over the draws, `(N, classes)`, float32.
        mean_entropy: mean over the draws of the entropy of the softmax, `(N,)`, float32, in nats.
        mean_square: mean over the draws of p . p, `(N,)`, float32.
        votes: number of draws that predict each class, `(N, classes)`, int32.
        correct: mask of correct predictions per draw, `(K, N)`, bool.
        resampled_accuracy: accuracy of the ensemble on each of 200 bootstrap resamples of the K draws, `(200,)`,
            float64; shows the variation due to the choice of draws.
        resampled_share: fraction of those resamples in which the ensemble is right, `(N,)`, float64.
        flags: names of defects of the model (`advbench.models.guard.ODDITIES`); not stored.
        enumerated: True if the draws are all members of the posterior, each once, rather than a sample.
    """

    labels: NDArray[np.int64]
    mean_probs: NDArray[np.float32]
    mean_entropy: NDArray[np.float32]
    mean_square: NDArray[np.float32]
    votes: NDArray[np.int32]
    correct: Bools
    resampled_accuracy: NDArray[np.float64]
    resampled_share: NDArray[np.float64]
    flags: tuple[str, ...] = ()
    enumerated: bool = False

    @classmethod
    def from_probs(cls, probs: Floats, labels: NDArray[np.int64], *, enumerated: bool = False) -> Self:
        """Summarise softmax outputs.

        Args:
            probs: probabilities `(K, N, classes)`; each row sums to 1.
            labels: labels `(N,)`.
            enumerated: True if the draws are all members of the posterior; no bootstrap is then needed.

        Raises:
            InputError: there are no draws or no images, or shapes are inconsistent.
        """
        if probs.ndim != 3 or 0 in probs.shape or labels.shape != probs.shape[1:2]:
            raise InputError(
                "predictions",
                expected="non-empty probabilities (draws, images, classes) and labels (images,)",
                got=f"{probs.shape} and {labels.shape}",
            )
        from scipy import special  # not needed for reports of finished runs

        _, count, classes = probs.shape
        mean = probs.mean(0, dtype=np.float64).astype(np.float32)
        modes = probs.argmax(2)
        votes = np.zeros((count, classes), np.int32)
        for mode in modes:
            votes[np.arange(count), mode] += 1
        right = np.broadcast_to(mean.argmax(1) == labels, (RESAMPLES, count)).copy()
        # Where all draws predict one class, so does every mean of them.
        disputed = (modes != modes[0]).any(0)
        if not enumerated and disputed.any():
            right[:, disputed] = _resampled(probs[:, disputed], labels[disputed])
        return cls(
            labels=labels.astype(np.int64),
            mean_probs=mean,
            mean_entropy=special.entr(probs).sum(2).mean(0).astype(np.float32),
            mean_square=np.square(probs).sum(2).mean(0).astype(np.float32),
            votes=votes,
            correct=modes == labels,
            resampled_accuracy=right.mean(1),
            resampled_share=right.mean(0),
            enumerated=enumerated,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name; includes `enumerated`, a scalar, only if True."""
        names = [field.name for field in fields(self) if field.name not in ("flags", "enumerated")]
        found = {name: getattr(self, name) for name in names}
        return {**found, "enumerated": np.array([True])} if self.enumerated else found

    def to_bytes(self) -> bytes:
        """Serialise as one safetensors file."""
        return safetensors.numpy.save(self.arrays())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Predictions:
        """Restore predictions from the result of `to_bytes`."""
        arrays: dict[str, Any] = safetensors.numpy.load(raw)
        enumerated = bool(arrays.pop("enumerated", np.array([False]))[0])
        return cls(**arrays, enumerated=enumerated)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def draws(self) -> int:
        """Number of draws K."""
        return len(self.correct)

    @cached_property
    def ensemble_correct(self) -> Bools:
        """Mask of the images where the argmax of the mean softmax is the label, `(N,)` (Adv-BNN eq. 18)."""
        result: Bools = self.mean_probs.argmax(1) == self.labels
        return result

    @property
    def tied(self) -> float:
        """Fraction of the images whose largest mean probability belongs to several classes; the first is predicted."""
        largest = self.mean_probs.max(1, keepdims=True)
        return float(((self.mean_probs == largest).sum(1) > 1).mean())

    @property
    def accuracy(self) -> float:
        """Accuracy of the ensemble, as a fraction."""
        return float(self.ensemble_correct.mean())

    @cached_property
    def interval(self) -> Interval:
        """95 % interval of the accuracy of the ensemble over images and sets of K draws."""
        return ensemble_interval(self)

    @property
    def draw_accuracies(self) -> Floats:
        """Accuracy of each draw on all images, `(K,)`."""
        accuracies: Floats = self.correct.mean(1)
        return accuracies

    @property
    def draw_accuracy(self) -> float:
        """Expected accuracy of a single draw, as a fraction."""
        return float(self.correct.mean())

    @cached_property
    def draw_interval(self) -> Interval:
        """95 % interval of the expected accuracy of a single draw over images and draws."""
        return draw_interval(self.correct, enumerated=self.enumerated)


class Spread(NamedTuple):
    """Variance of a mean, and the degrees of freedom of its estimate."""

    variance: float
    freedom: float


def student_quantile(freedom: float | Floats) -> NDArray[np.float64]:
    """The 97.5 % quantile of Student's t distribution.

    Equals `scipy.stats.t.ppf`, whose module takes most of a second to import.
    """
    from scipy import special

    return np.asarray(special.stdtrit(freedom, (1 + CONFIDENCE) / 2), np.float64)


def wilson(mean: float, size: float, freedom: float = math.inf) -> Interval:
    """Wilson's score interval (95 %) of a proportion.

    Wilson 1927, for `size` independent images. For a proportion with another variance, the size is the effective sample
    size mean (1 - mean) / variance, and the normal quantile is replaced by Student's at the degrees of freedom of the
    variance (as in Korn and Graubard 1998 for clustered samples).

    Args:
        mean: the proportion, in [0, 1].
        size: number of images, or the effective sample size.
        freedom: degrees of freedom of the variance estimate.
    """
    z = float(student_quantile(freedom))
    centre = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(mean * (1 - mean) / size + (z / (2 * size)) ** 2)
    # At proportions of 0 and 1 a limit equals the proportion, up to rounding; the interval contains it exactly.
    return Interval(min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))


def draw_interval(correct: Bools, *, enumerated: bool = False) -> Interval:
    """95 % interval of the accuracy of a single draw, over images and draws.

    Every draw predicts every image: a crossed design with effects of the draw (bad on all images), of the image (hard
    for all draws) and of their interaction. An unbiased estimate of the variance of the mean over both follows from the
    mean squares of the table: (MS_draw + MS_image - MS_rest) / (K N). The naive two-level bootstrap of the table counts
    the interaction three times (Owen 2007, "The pigeonhole bootstrap") and is far too wide if draws err independently;
    this is its correction in closed form, without random numbers.

    Args:
        correct: mask of correct predictions, `(K, N)`.
        enumerated: True if the draws are all members of the posterior; the interval is then over images only.
    """
    draws, count = correct.shape
    if draws == 1 or (correct == correct[:1]).all() or correct.mean() in (0.0, 1.0):
        return wilson(float(correct[0].mean()), count)
    table = correct.astype(np.float64)
    mean = float(table.mean())
    draw_part, rest = (Spread(0.0, 1), Spread(0.0, 1)) if enumerated else draw_spread(table)
    image_part = Spread(float(table.mean(0).var(ddof=1)) / count, count - 1) if count > 1 else Spread(0.0, 1)
    return combined(mean, draw_part, image_part, rest, least=mean * (1 - mean) / (draws * count))


def ensemble_interval(predictions: Predictions) -> Interval:
    """95 % interval of the accuracy of an ensemble of K draws, over images and sets of K draws.

    The variance has two parts. Images contribute the variance of a proportion, which includes the effect of draws on
    single images. Draws contribute their common effect on all images: the variance over bootstrap resamples of the
    draws (times K / (K - 1), because a resample varies less than a fresh set), minus the part due to flips of single
    images. In simulations with 20 draws and 50 images the coverage is 92 to 98 %, but 90 % if draws differ so much that
    many are wrong on nearly all images.
    """
    count, share = len(predictions), predictions.resampled_share
    mean = predictions.accuracy
    if mean in (0.0, 1.0):
        mean = float(share.mean())  # estimate for a fresh set of draws
    if predictions.draws == 1 or mean in (0.0, 1.0) or np.isin(share, (0.0, 1.0)).all():
        return wilson(predictions.accuracy, count)
    image_part = Spread(mean * (1 - mean) / count, math.inf)
    low, high = combined(mean, shared_spread(predictions), image_part, Spread(0.0, math.inf), least=image_part.variance)
    return Interval(min(low, predictions.accuracy), max(high, predictions.accuracy))


def shared_spread(predictions: Predictions) -> Spread:
    """Variance of the ensemble's accuracy due to the common effect of draws on all images; 0 for a single draw.

    The variance over bootstrap resamples of the draws, times K / (K - 1), minus the part due to flips of single images.
    """
    draws, share = predictions.draws, predictions.resampled_share
    if draws == 1:
        return Spread(0.0, 1)
    flips = float((share * (1 - share)).mean()) / len(predictions)
    spread = float(predictions.resampled_accuracy.var(ddof=1))
    return Spread(max(0.0, spread - flips) * draws / (draws - 1), draws - 1)


def _resampled(probs: Floats, labels: NDArray[np.int64]) -> Bools:
    """Mask of correct predictions of the ensemble per bootstrap resample of the draws, `(RESAMPLES, N)`."""
    draws = len(probs)
    right = np.empty((RESAMPLES, len(labels)), bool)
    weights = np.random.default_rng(0).multinomial(draws, np.full(draws, 1 / draws), RESAMPLES) / draws
    classes = probs.shape[2]
    step = max(1, 2**19 // classes // RESAMPLES)  # images per step, so that they stay in the cache
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        known = labels[rows]
        flat = probs[:, rows].transpose(0, 2, 1).astype(np.float64).reshape(draws, -1)
        resampled = (weights @ flat).reshape(RESAMPLES, classes, -1)
        largest = resampled.max(1)  # vectorised, unlike argmax
        if np.count_nonzero(resampled == largest[:, None]) == largest.size:
            right[:, rows] = (resampled[:, known, np.arange(len(known))] == largest) & (known >= 0)
        else:  # the first of equal maxima counts
            right[:, rows] = resampled.argmax(1) == known
    return right


def draw_spread(table: Floats) -> tuple[Spread, Spread]:
    """Variance of the mean of a `(K, N)` table due to draws, and the part of it due to the interaction."""
    draws, count = table.shape
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    rest = float(np.square(table - rows - columns + table.mean()).sum())
    freedom = (draws - 1) * max(1, count - 1)
    return Spread(float(rows.var(ddof=1)) / draws, draws - 1), Spread(rest / freedom / (draws * count), freedom)


def combined(mean: float, draws: Spread, images: Spread, rest: Spread, *, least: float) -> Interval:
    """Wilson's interval for the variance draws + images - rest, with Satterthwaite's degrees of freedom."""
    variance = max(draws.variance + images.variance - rest.variance, least)
    scatter = sum(part.variance**2 / part.freedom for part in (draws, images, rest))
    freedom = variance**2 / scatter if scatter else math.inf
    return wilson(mean, mean * (1 - mean) / variance, freedom)
