"""Measurements of a classifier during training, after each epoch or a number of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from advbench.data.base import Data
from advbench.errors import InputError
from advbench.evaluation import detection, score
from advbench.evaluation.evaluate import evaluate, evaluate_ood
from advbench.models.classifier import Classifier
from advbench.training.base import Defense, TrainContext

DETECTORS = ("total", "epistemic", "least_confidence")
Measure = Callable[[Classifier], Mapping[str, float]]


class Moment(NamedTuple):
    """Measurements at one moment of a training, with the number of steps done."""

    step: int
    values: Mapping[str, float]


def watches(method: type[Defense]) -> bool:
    """True if the class that writes a method's `fit` states that it shows the classifier that `fit` returns."""
    owner = next(each for each in method.__mro__ if "fit" in vars(each))
    return bool(vars(owner).get("watches", False))


def check_watched(method: type[Defense], name: str) -> None:
    """Refuse to measure a training whose `fit` changes the classifier of the one that it overrides.

    Raises:
        InputError: `fit` overrides one that calls `context.watch`, and does not state that it calls it itself.
    """
    if not watches(method) and method.watches:
        raise InputError(
            f"--history of defense {name!r}",
            expected="a fit that shows the classifier it returns",
            got="one that overrides it, so that another classifier would be measured",
            remedy="omit --history; a fit that calls context.watch itself states watches = True in its class",
        )


def history(
    defense: Defense,
    module: nn.Module,
    data: Data,
    measure: Measure,
    context: TrainContext | None = None,
    *,
    every: int | None = None,
) -> tuple[Classifier, list[Moment]]:
    """Train, and measure the classifier on the way, as in adversarial sampling's Figures 1, 3 and 5 and APD's Figure 7.

    The classifier that comes out is the one that `fit` gives without it, bit for bit: measuring draws no random
    numbers of the training and trains nothing. A training that goes on from a checkpoint is measured from there on.

    Args:
        defense: the training method, one whose steps the core's loop makes; of others only the end is measured.
        module: as `Defense.fit` takes it.
        data: the training images.
        measure: maps the classifier of a moment to values by name; `errors_on(data)` makes one.
        context: as `Defense.fit` takes it.
        every: steps from one moment to the next; by default those of an epoch. The end is always measured.

    Returns:
        The trained classifier, and the moments in their order.
    """
    moments: list[Moment] = []
    check_watched(type(defense), type(defense).__name__)

    def watch(step: int, clf: Classifier) -> None:
        moments.append(Moment(step, dict(measure(clf))))

    context = context or TrainContext()
    watched = dataclasses.replace(context, watch=watch, watch_every=every) if watches(type(defense)) else context
    clf = defense.fit(module, data, watched)
    if not moments:
        moments.append(Moment(0, dict(measure(clf))))
    return clf, moments


def errors_on(test: Data, draws: int = 20, seed: int = 0, ood: Mapping[str, Tensor] | None = None) -> Measure:
    """A measure for `history`: errors on held-out images, and whether uncertainty finds out others; as fractions.

    Args:
        test: the images.
        draws: number of draws of a random classifier, the same ones at every moment.
        seed: seed of the draws.
        ood: out-of-distribution images by name, each `(count, channels, height, width)`.

    Returns:
        `error` of the mean softmax (Adv-BNN eq. 18), and `draw_error`, `draw_error_min` and `draw_error_max`, the mean,
        lowest and highest of single draws. For each name in `ood` the AUROC of detection by total and epistemic
        uncertainty and by `least_confidence` (APD Figure 7), as `auroc_total:NAME` and so on.
    """
    x, y = test.batch(slice(None))

    def measure(clf: Classifier) -> Mapping[str, float]:
        device = next(clf.module.parameters()).device
        found = evaluate(clf, x.to(device), y.to(device), draws, seed=seed)
        errors = 1 - found.draw_accuracies
        single = {"draw_error": errors.mean(), "draw_error_min": errors.min(), "draw_error_max": errors.max()}
        values = {"error": 1 - found.accuracy, **{name: float(value) for name, value in single.items()}}
        for name, images in (ood or {}).items():
            others = evaluate_ood(clf, images.to(device), draws, seed=seed)
            for each in DETECTORS:
                values[f"auroc_{each}:{name}"] = detection(score(found, each), score(others, each)).auroc
        return values

    return measure
