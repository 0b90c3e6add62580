"""Evaluates a classifier by fresh draws."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.data.base import check_floating, check_labels
from advbench.errors import InputError, ModelWarning
from advbench.evaluation.predictions import Predictions
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.models.guard import ODDITIES, PROBE_IMAGES, draws_agree, opened, undisturbed
from advbench.progress import OnProgress, Progress

BATCH_SIZE = 256


@torch.no_grad()
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    draws: int = 20,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    report: OnProgress = lambda _: None,
) -> Predictions:
    """Evaluate a classifier on images by K fresh draws, each of them over all images (Adv-BNN eq. 18).

    The draws come from another stream than any attack's, whatever the seeds. A plain module counts as
    random, since none can be proved not to be; a `Classifier` that is not stochastic is passed once. A posterior of
    at most 2K members is enumerated: the mean is exact, and what draws vary by has no part in the intervals.

    Args:
        model: a `Classifier` or any `nn.Module` on [0, 1] images.
        x: images `(count, channels, height, width)`, float32 in [0, 1].
        y: labels `(count,)`, int64.
        draws: number of draws K; of at most 2K members, each is passed once instead.
        seed: of the draws.
        batch_size: images that pass the net together.
        report: called after each draw with the draws done and their accuracy so far.

    Returns:
        Predictions. The softmax outputs of all draws are held until they are summarised: 4 bytes a
        draw, image and class.

    Raises:
        InputError: images or labels that cannot be evaluated, or draws < 1.
        PluginError: the model's output has the wrong shape or is not finite.
    """
    check_floating(x, "images to evaluate")
    if len(x) == 0:
        raise InputError("images to evaluate", expected="at least one", got=0)
    clf, classes, oddities = opened(model, x)
    check_labels(y, len(x), classes, "labels to evaluate")
    labels, declared = y.cpu().numpy(), model is clf
    how: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "report": report, "declared": declared}
    found = _evaluated(clf, x, labels, draws, **how)
    return dataclasses.replace(found, flags=(*oddities, *found.flags))


@torch.no_grad()
def evaluate_ood(
    model: nn.Module,
    x: Tensor,
    draws: int = 20,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    report: OnProgress = lambda _: None,
) -> Predictions:
    """As `evaluate`, of images that belong to no class and may leave [0, 1]: only their uncertainty means anything.

    Args:
        model: a `Classifier` or any `nn.Module` on [0, 1] images.
        x: images `(count, channels, height, width)`, float32.
        draws: number of draws K.
        seed: of the draws; with the same one they are those of `evaluate`.
        batch_size: images that pass the net together.
        report: called after each draw.

    Returns:
        Predictions with labels of -1, which no prediction is.

    Raises:
        InputError: no images, or draws < 1.
        PluginError: the model's output has the wrong shape or is not finite.
    """
    if len(x) == 0:
        raise InputError("images to evaluate", expected="at least one", got=0)
    clf = opened(model, x).clf
    labels = np.full(len(x), -1, np.int64)
    return _evaluated(clf, x, labels, draws, seed=seed, batch_size=batch_size, report=report, declared=model is clf)


@torch.no_grad()
def evaluate_draws(
    draws: Sequence[Classifier],
    x: Tensor,
    y: Tensor,
    *,
    enumerated: bool = False,
    batch_size: int = BATCH_SIZE,
    report: OnProgress = lambda _: None,
) -> Predictions:
    """Evaluate each of several frozen draws on images of its own: those of an adversary who knows which one answers.

    Args:
        draws: frozen draws of a classifier.
        x: each draw's images, `(draws, count, channels, height, width)`, float32 in [0, 1].
        y: labels `(count,)`, int64.
        enumerated: whether the draws are all that there are.
        batch_size: images that pass the net together.
        report: called after each draw.

    Returns:
        Predictions of which the accuracies of single draws mean something, and nothing else: no two draws saw the
        same images.

    Raises:
        PluginError: the model's output has the wrong shape or is not finite.
    """
    found = []
    for k, (draw, images) in enumerate(zip(draws, x, strict=True)):
        with draw.isolated():
            starts = range(0, len(images), batch_size)
            parts = [draw.at(draw.draw(0), images[s : s + batch_size], offset=s).float().softmax(1) for s in starts]
            draw.passes.check_finite()
        found.append(torch.cat(parts).cpu().numpy())
        report(Progress(k + 1, len(draws)))
    return Predictions.from_probs(np.stack(found), y.cpu().numpy(), enumerated=enumerated)


def _evaluated(
    clf: Classifier,
    x: Tensor,
    labels: NDArray[np.int64],
    draws: int,
    *,
    seed: int,
    batch_size: int,
    report: OnProgress,
    declared: bool,
) -> Predictions:
    if not isinstance(draws, int) or draws < 1:
        raise InputError("draws", expected="at least 1", got=repr(draws))
    members = clf.members
    enumerated = members is not None and 1 < members <= 2 * draws
    draws = members if members is not None and members <= 2 * draws else draws
    probs, right = [], 0.0
    with undisturbed(clf, seed, x.device), clf.isolated(), clf.posterior.fixed():
        for k in range(draws):
            draw = clf.member(k) if enumerated else clf.draw(derive(seed, "judge", k))
            parts = []
            for start in range(0, len(x), batch_size):
                logits = clf.at(draw, x[start : start + batch_size], offset=start)
                parts.append(logits.float().softmax(1).cpu())
            probs.append(torch.cat(parts).numpy())
            right += float((probs[-1].argmax(1) == labels).mean())
            report(Progress(k + 1, draws, {"accuracy so far": right / (k + 1)}))
        clf.passes.check_finite()
        equal = declared and draws > 1 and all(np.array_equal(one, probs[0]) for one in probs)
        # Of few members, a few draws may all be one of them.
        equal = equal and (enumerated or draws_agree(clf, x[:PROBE_IMAGES]))
    if equal:
        warnings.warn(ModelWarning(ODDITIES["equal_draws"]), stacklevel=3)
    found = Predictions.from_probs(np.stack(probs), labels, enumerated=enumerated)
    return dataclasses.replace(found, flags=("equal_draws",) if equal else ())
