"""What a record says of predictions: all that reports need of them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from advbench.evaluation import (
    Predictions,
    accepted_errors,
    calibration,
    detection,
    histogram,
    persistence,
    retention,
    shared_spread,
    uncertainty,
)
from advbench.evaluation.predictions import Spread

ENTROPIES = ("total", "aleatoric", "epistemic")  # measures of uncertainty of which whole distributions are kept


def summary(
    predictions: Predictions,
    clean: Predictions | None = None,
    *,
    deterministic: bool = False,
    stopped_early: bool = False,
) -> dict[str, Any]:
    """The metrics of one cell as JSON values: all that reports say of it.

    Args:
        predictions: of the cell's images.
        clean: by the same draws, of the images before the attack; None where those are the cell's own.
        deterministic: whether the classifier is: all its answers are known then.
        stopped_early: whether these are examples of an attack that left images alone once they were fooled. They lie
            near the boundary, where any classifier is least certain, so nothing is said of uncertainty, nor of repeated
            tries.
    """
    spread = shared_spread(predictions)
    return {
        **known_draws(predictions),
        "accuracy": predictions.accuracy,
        "accuracy_interval": list(predictions.interval),
        "right": base64.b64encode(np.packbits(predictions.ensemble_correct).tobytes()).decode(),
        "draw_variance": spread.variance,
        **({} if stopped_early else _of_uncertainty(predictions, clean, spread, deterministic=deterministic)),
    }


def known_draws(predictions: Predictions) -> dict[str, Any]:
    """The part of `summary` that is about single draws, which may each have seen images of their own."""
    draws = predictions.draw_accuracies
    return {
        "n_examples": len(predictions),
        "classes": predictions.mean_probs.shape[1],
        "draws": predictions.draws,
        "draw_accuracy": predictions.draw_accuracy,
        "draw_accuracy_interval": list(predictions.draw_interval),
        "draw_accuracy_min": float(draws.min()),
        "draw_accuracy_max": float(draws.max()),
        **({"enumerated": True} if predictions.enumerated else {}),
    }


def _of_uncertainty(
    predictions: Predictions, clean: Predictions | None, spread: Spread, *, deterministic: bool
) -> dict[str, Any]:
    measures = uncertainty(predictions)._asdict()
    entropies = {name: measures[name] for name in ENTROPIES}
    classes, right = predictions.mean_probs.shape[1], predictions.ensemble_correct
    found: dict[str, Any] = {}
    if clean is not None:
        before = uncertainty(clean)._asdict()
        found = {
            "detection": {name: detection(before[name], measures[name])._asdict() for name in measures},
            "accepted_errors": {name: accepted_errors(right, entropies[name], before[name]) for name in ENTROPIES},
        }
    exact = predictions.enumerated or deterministic
    return {
        "uncertainty": {name: float(values.mean()) for name, values in measures.items()},
        "histograms": {name: histogram(values, classes) for name, values in entropies.items()},
        "retention": {
            name: retention(predictions.ensemble_correct, values, draws=spread)._asdict()
            for name, values in entropies.items()
        },
        "calibration": calibration(predictions)._asdict(),
        "persistence": [each._asdict() for each in persistence(predictions.correct, enumerated=exact)],
        **found,
    }
