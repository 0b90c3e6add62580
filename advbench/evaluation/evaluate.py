"""Evaluation of a classifier with fresh draws."""

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
from advbench.models.guard import ODDITIES, PROBE_IMAGES, TIED, draws_agree, opened, undisturbed
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
    """Evaluate a classifier with K fresh draws, each shared by all images (Adv-BNN eq. 18).

    The draws are independent of those of any attack, whatever the seeds. A plain module counts as random, because none
    can be proved deterministic; a deterministic `Classifier` takes one pass. A posterior with at most 2K members is
    enumerated: the mean is exact, and intervals do not include variation over draws.

    Args:
        model: a `Classifier` or any `nn.Module` on [0, 1] images.
        x: images `(count, channels, height, width)`, float32 in [0, 1].
        y: labels `(count,)`, int64.
        draws: number of draws K; with at most 2K members, each member is used once instead.
        seed: seed of the draws.
        batch_size: number of images per forward pass.
        report: callback after each draw, with the number of draws done and their accuracy so far.

    Returns:
        Predictions. The softmax outputs of all draws are kept in memory until they are summarised: 4 bytes per draw,
        image and class.

    Raises:
        InputError: images or labels are invalid, or draws < 1.
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
    ties = ("ties",) if found.tied > TIED else ()
    if ties:
        warnings.warn(ModelWarning(ODDITIES["ties"]), stacklevel=2)
    return dataclasses.replace(found, flags=(*oddities, *found.flags, *ties))


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
    """Like `evaluate`, for images without a class that may exceed [0, 1]: only their uncertainty is meaningful.

    Args:
        model: a `Classifier` or any `nn.Module` on [0, 1] images.
        x: images `(count, channels, height, width)`, float32.
        draws: number of draws K.
        seed: seed of the draws; the same seed gives the draws of `evaluate`.
        batch_size: number of images per forward pass.
        report: callback after each draw.

    Returns:
        Predictions with labels -1, which match no class.

    Raises:
        InputError: there are no images, or draws < 1.
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
    """Evaluate each of several frozen draws on its own images, crafted by an adversary who knows that draw.

    Args:
        draws: frozen draws of a classifier.
        x: images of each draw, `(draws, count, channels, height, width)`, float32 in [0, 1].
        y: labels `(count,)`, int64.
        enumerated: True if the draws are all members of the posterior.
        batch_size: number of images per forward pass.
        report: callback after each draw.

    Returns:
        Predictions in which only the accuracies of single draws are meaningful, because each draw has its own images.

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
        # With few members, a few draws may coincide by chance.
        equal = equal and (enumerated or draws_agree(clf, x[:PROBE_IMAGES]))
    if equal:
        warnings.warn(ModelWarning(ODDITIES["equal_draws"]), stacklevel=3)
    found = Predictions.from_probs(np.stack(probs), labels, enumerated=enumerated)
    return dataclasses.replace(found, flags=("equal_draws",) if equal else ())
