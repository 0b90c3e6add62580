"""What can be: intervals and predictions of simulated draws pass, those that contradict themselves do not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from advbench.boards.intervals import implausible_intervals
from advbench.boards.possible import contradictions
from advbench.evaluation import RESAMPLES, Predictions, wilson

Arrays = dict[str, Any]


def simulated(generator: np.random.Generator, draws: int, images: int, classes: int, kind: str) -> Predictions:
    """Draws of images that are hard for all, of draws that are bad on all, and of both."""
    labels = generator.integers(0, classes, images)
    scales = generator.uniform(0, 3, 3)
    logits = scales[0] * generator.normal(size=(1, images, classes))
    logits = logits + scales[1] ** 2 * generator.normal(size=(draws, 1, classes))
    logits = logits + scales[2] * generator.normal(size=(draws, images, classes))
    mine = np.arange(images), labels
    for logit in logits:
        logit[mine] += {"right": 20.0, "wrong": -20.0, "split": generator.choice([-9.0, 9.0])}.get(kind, 1.0)
    if kind == "same":
        logits[:] = logits[0]
    elif kind in ("right", "wrong"):  # but for one draw
        logits[0] = generator.normal(size=(images, classes)) * 30
    elif kind == "flat":
        logits[:] = 0.0
    probs = np.exp(logits - logits.max(2, keepdims=True)).astype(np.float32)
    if kind == "foreign":
        labels[:] = -1
    return Predictions.from_probs(probs / probs.sum(2, keepdims=True), labels)


def row_of(found: Predictions) -> dict[str, float]:
    draws = found.draw_accuracies
    ends = {"accuracy": found.interval, "draw_accuracy": found.draw_interval}
    return {
        "n_examples": float(len(found)),
        "draws": float(found.draws),
        "accuracy": found.accuracy,
        "draw_accuracy_mean": found.draw_accuracy,
        "draw_accuracy_min": float(draws.min()),
        "draw_accuracy_max": float(draws.max()),
        **{f"{head}_{end}": getattr(interval, end) for head, interval in ends.items() for end in ("low", "high")},
    }


KINDS = ("plain", "split", "same", "right", "wrong", "flat", "foreign")


@pytest.mark.parametrize("kind", KINDS)
def test_what_draws_say_is_never_taken_for_a_forgery(kind: str) -> None:
    generator = np.random.default_rng(KINDS.index(kind))
    for draws, images, classes, _ in product((1, 2, 3, 4, 20), (1, 2, 7, 40), (2, 3, 10), range(3)):
        found = simulated(generator, draws, images, classes, kind)
        assert contradictions(found) == [], (draws, images, classes)
        if kind != "foreign":
            assert list(implausible_intervals(row_of(found))) == [], (draws, images, classes)


def test_large_predictions_are_no_forgery() -> None:
    found = simulated(np.random.default_rng(0), 50, 60, 1000, "plain")
    assert contradictions(found) == []


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_an_ensemble_without_errors_has_an_interval_that_ends_there(accuracy: float) -> None:
    kind = "right" if accuracy else "wrong"
    generator = np.random.default_rng(0)
    rows = (row_of(simulated(generator, 5, 40, 10, kind)) for _ in range(50))
    row = next(row for row in rows if row["accuracy"] == accuracy)
    low, high = wilson(accuracy, 40)
    inner, outer = ("low", "high") if accuracy else ("high", "low")
    assert list(implausible_intervals({**row, "accuracy_low": low, "accuracy_high": high})) == []
    assert list(implausible_intervals({**row, f"accuracy_{inner}": accuracy}))
    assert list(implausible_intervals({**row, f"accuracy_{outer}": 0.5}))


def sure(arrays: Arrays) -> Arrays:
    """All images right, as far as the ensemble says."""
    one_hot = np.eye(arrays["mean_probs"].shape[1], dtype=np.float32)[arrays["labels"]]
    images = len(arrays["labels"])
    return {"mean_probs": one_hot, "resampled_accuracy": np.ones(RESAMPLES), "resampled_share": np.ones(images)}


def sure_in_everything(arrays: Arrays) -> Arrays:
    images = len(arrays["labels"])
    found = {"mean_entropy": np.zeros(images, np.float32), "mean_square": np.ones(images, np.float32)}
    return {**sure(arrays), **found}


FORGED: dict[str, tuple[str, Callable[[Arrays], Arrays], str]] = {
    "one-hot means": ("plain", sure, "mean_probs and votes"),
    "one-hot means of one entropy": ("plain", sure_in_everything, "mean_probs and votes"),
    "one-hot means of draws that agree": ("same", sure_in_everything, "mean_probs and votes"),
    "entropy above that of the mean": ("plain", lambda a: {"mean_entropy": a["mean_entropy"] + 2}, "mean_entropy"),
    "no entropy": ("plain", lambda a: {"mean_entropy": a["mean_entropy"] * 0}, "mean_entropy"),
    "squares below that of the mean": ("plain", lambda a: {"mean_square": a["mean_square"] * 0}, "mean_square"),
    "lucky resamples": (
        "plain",
        lambda a: {"resampled_accuracy": np.ones(RESAMPLES), "resampled_share": np.ones(len(a["labels"]))},
        "resampled_share",
    ),
    "resamples of parts of images": (
        "plain",
        lambda a: {"resampled_accuracy": np.full(RESAMPLES, a["resampled_share"].mean() + 1e-5)},
        "resampled_accuracy",
    ),
    "foreign images that are right": ("foreign", lambda a: {"resampled_share": a["resampled_share"] + 1}, "resampled"),
}


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("what", FORGED)
def test_predictions_that_contradict_themselves_are_found(what: str, draws: int) -> None:
    kind, change, problem = FORGED[what]
    honest = simulated(np.random.default_rng(5), draws, 40, 10, kind)
    assert contradictions(honest) == []
    forged = Predictions(**{**honest.arrays(), **change(dict(honest.arrays()))})
    assert any(problem in name for name in contradictions(forged)), contradictions(forged)
