"""Summary of predictions in a record, with all values that reports need."""

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

ENTROPIES = ("total", "aleatoric", "epistemic")  # measures of uncertainty with a stored histogram


def summary(
    predictions: Predictions,
    clean: Predictions | None = None,
    *,
    deterministic: bool = False,
    stopped_early: bool = False,
) -> dict[str, Any]:
    """Metrics of one cell as JSON values.

    Args:
        predictions: predictions on the cell's images.
        clean: predictions of the same draws on the clean images; None if the cell's images are clean.
        deterministic: True if the classifier is deterministic, so that all its predictions are known.
        stopped_early: True if the attack stopped for images that were already misclassified. Such examples lie near the
            decision boundary, where any classifier is least certain, so measures of uncertainty and of repeated tries
            are omitted.
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
    """The part of `summary` about single draws, each of which may have its own images."""
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
