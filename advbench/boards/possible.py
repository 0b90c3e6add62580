"""Whether predictions can be what some draws of a classifier say of some images."""

from __future__ import annotations

import numpy as np
from scipy import special

from advbench.evaluation import RESAMPLES, Bools, Floats, Predictions

ROUNDING = 1e-5  # of what is kept in float32
ROUNDING_OF_SUMS = 1e-7  # of each draw, in a mean over draws, of numbers of order 1


def contradictions(found: Predictions) -> list[str]:
    """The arrays of predictions that cannot be together; with labels of -1, of images that belong to no class.

    A draw's class has the largest probability of that draw, so votes bound the mean: by as much as one class can exceed
    another where a draw votes for it, for the other, or for neither. Entropy and squares bound each other and those of
    the mean, and equal these where there is one draw. Where draws agree, so does each resample of them.

    Args:
        found: of shapes that fit, without negative or infinite numbers, but for labels.
    """
    slack = ROUNDING + found.draws * ROUNDING_OF_SUMS * max(1.0, float(np.log(found.mean_probs.shape[1])))
    right = np.where(found.labels >= 0, found.votes[np.arange(len(found)), found.labels], 0)
    held = {
        "mean_probs": np.allclose(found.mean_probs.sum(1), 1, atol=1e-4),
        "votes": (found.votes.sum(1) == found.draws).all(),
        "correct": (right == found.correct.sum(0)).all(),
        "mean_probs and votes": _votes_hold(found, slack),
        **_moments_hold(found, slack),
        **_resamples_hold(found, slack),
    }
    return [name for name, holds in held.items() if not holds]


def _votes_hold(found: Predictions, slack: float) -> bool:
    probs, votes, draws = found.mean_probs.astype(np.float64), found.votes, found.draws
    rows, top = np.arange(len(found)), probs.argmax(1)
    if (probs < votes / (draws * votes.shape[1]) - slack).any():
        return False
    ahead = probs[rows, top][:, None] - probs
    mine = votes[rows, top][:, None]
    # At most 1 where a draw votes for the first class, nothing where it votes for the other, and 1/2 where for neither.
    most = (mine + (draws - mine - votes) / 2) / draws
    most[rows, top] = 0.0
    return bool((ahead <= most + slack).all())


def _moments_hold(found: Predictions, slack: float) -> dict[str, bool]:
    probs = found.mean_probs.astype(np.float64)
    entropy, square = found.mean_entropy.astype(np.float64), found.mean_square.astype(np.float64)
    of_mean, square_of_mean = special.entr(probs).sum(1), np.square(probs).sum(1)
    wide = 1e-4 + slack  # of entropies, which the sum of many classes' probabilities moves
    held = {
        "mean_entropy": (entropy <= of_mean + wide) & (entropy >= -np.log(np.maximum(square, 1e-30)) - wide),
        "mean_square": (square >= square_of_mean - wide) & (square <= 1 + wide),
    }
    if found.draws == 1:
        held["mean_entropy"] &= entropy >= of_mean - wide
        held["mean_square"] &= square <= square_of_mean + wide
    return {name: bool(holds.all()) for name, holds in held.items()}


def _resamples_hold(found: Predictions, slack: float) -> dict[str, bool]:
    share, accuracy = found.resampled_share, found.resampled_accuracy
    certain = _unanimous(found, slack)
    wrong = ~found.ensemble_correct & (_lead(found.mean_probs) > slack)
    if found.draws == 1:
        shares = (share == found.ensemble_correct).all()
    else:
        agree = (share == found.ensemble_correct)[certain].all()
        # An ensemble that is wrong is so, too, in some of many resamples.
        shares = agree and (share[wrong] < 1).all()
    whole = [_whole(share * RESAMPLES), _whole(accuracy * len(found)), np.isclose(accuracy.mean(), share.mean())]
    possible = (share <= 1).all() and (accuracy <= 1).all() and (share[found.labels < 0] == 0).all()
    return {"resampled_share": bool(shares and possible), "resampled_accuracy": all(map(bool, whole))}


def _unanimous(found: Predictions, slack: float) -> Bools:
    """The images on which all draws vote alike, by more than rounding."""
    unanimous: Bools = (found.votes.max(1) == found.draws) & (_lead(found.mean_probs) > slack)
    return unanimous


def _lead(probs: Floats) -> Floats:
    """By how much the likeliest class leads the second."""
    best = np.partition(probs.astype(np.float64), -2, axis=1)
    lead: Floats = best[:, -1] - best[:, -2]
    return lead


def _whole(values: Floats) -> bool:
    return bool((np.abs(values - np.rint(values)) < 1e-6).all())
