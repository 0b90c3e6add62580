"""What a record says of predictions: all that reports need of them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from advbench.evaluation import Predictions, calibration, detection, histogram, retention, shared_spread, uncertainty

ENTROPIES = ("total", "aleatoric", "epistemic")  # measures of uncertainty of which whole distributions are kept


def summary(
    predictions: Predictions, clean: Predictions | None = None, *, stopped_early: bool = False
) -> dict[str, Any]:
    """The metrics of one cell as JSON values: all that reports say of it.

    Args:
        predictions: of the cell's images.
        clean: by the same draws, of the images before the attack; None where those are the cell's own.
        stopped_early: whether these are examples of an attack that left images alone once they were fooled. They lie
            near the boundary, where any classifier is least certain, so nothing is said of uncertainty.
    """
    draws = predictions.draw_accuracies
    found: dict[str, Any] = {"enumerated": True} if predictions.enumerated else {}
    return {
        "n_examples": len(predictions),
        "classes": predictions.mean_probs.shape[1],
        "draws": predictions.draws,
        "accuracy": predictions.accuracy,
        "accuracy_interval": list(predictions.interval),
        "draw_accuracy": predictions.draw_accuracy,
        "draw_accuracy_interval": list(predictions.draw_interval),
        "draw_accuracy_min": float(draws.min()),
        "draw_accuracy_max": float(draws.max()),
        "right": base64.b64encode(np.packbits(predictions.ensemble_correct).tobytes()).decode(),
        "draw_variance": shared_spread(predictions).variance,
        **({} if stopped_early else _of_uncertainty(predictions, clean)),
        **found,
    }


def _of_uncertainty(predictions: Predictions, clean: Predictions | None) -> dict[str, Any]:
    measures = uncertainty(predictions)._asdict()
    entropies = {name: measures[name] for name in ENTROPIES}
    classes = predictions.mean_probs.shape[1]
    found: dict[str, Any] = {}
    if clean is not None:
        before = uncertainty(clean)._asdict()
        found = {"detection": {name: detection(before[name], measures[name])._asdict() for name in measures}}
    return {
        "uncertainty": {name: float(values.mean()) for name, values in measures.items()},
        "histograms": {name: histogram(values, classes) for name, values in entropies.items()},
        "retention": {name: retention(predictions.ensemble_correct, v)._asdict() for name, v in entropies.items()},
        "calibration": calibration(predictions)._asdict(),
        **found,
    }
