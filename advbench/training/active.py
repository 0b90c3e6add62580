"""Pool-based active learning: a classifier selects the images to label next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from advbench.data.base import Data
from advbench.errors import InputError, unknown_name
from advbench.evaluation import Interval, score, student_quantile
from advbench.evaluation.evaluate import evaluate
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.training.base import Defense, TrainContext

# Acquisition functions, each with the measure of uncertainty that it maximises.
ACQUISITIONS = {
    "random": "",
    "entropy": "total",  # APD section 5.3
    "bald": "epistemic",  # APD eq. 9
    "variation_ratio": "variation_ratio",  # APD eq. 10
    "model_variance": "model_variance",  # APD eq. 11
    "least_confidence": "least_confidence",
}


class Round(NamedTuple):
    """A training on the images labelled so far.

    Attributes:
        labelled: positions of the training images in the pool, in the order of selection.
        accuracy: accuracy on the test images, as a fraction.
        interval: 95 % interval of the accuracy, over images and draws.
    """

    labelled: tuple[int, ...]
    accuracy: float
    interval: Interval


def active_learning(
    defense: Defense,
    net: Callable[[int], nn.Module],
    pool: Data,
    test: Data,
    acquisition: str = "entropy",
    *,
    rounds: int = 50,
    batch: int = 10,
    per_class: int = 2,
    draws: int = 50,
    context: TrainContext | None = None,
    done: Sequence[Round] = (),
    report: Callable[[Round], None] = lambda _: None,
) -> list[Round]:
    """Train on a few labelled images, let the classifier select more from the pool, and train again, repeatedly.

    Gal et al. 2017 and APD section 5.3 (Figure 4), whose numbers are the defaults: 2 images of each class, then 10 more
    per round, of largest entropy. Each round trains a new net (APD's released code: 3,000 steps on all labelled images,
    so `stages=(3000,)` with a `batch_size` of at least their number). Departure: the released code continues the
    training of APD's GAN between rounds; here it starts from scratch like all methods.

    Everything is determined by the context's seed and the images selected so far, so an interrupted study can resume
    from its finished rounds with the same result.

    Args:
        defense: the training method.
        net: function from a seed to an untrained net, such as `lambda seed: advbench.build_architecture("apd_cnn",
            pool, seed)`.
        pool: images to select from, with the labels of an annotator.
        test: images for the accuracy.
        acquisition: one of `ACQUISITIONS`.
        rounds: number of trainings, the first on images chosen at random.
        batch: number of images selected per round.
        per_class: number of images per class in the first round.
        draws: number of draws of a random classifier, for selection and evaluation; APD's released code: 50.
        context: seed, device and precision of all trainings.
        done: finished rounds to resume from.
        report: callback after each round.

    Returns:
        All rounds, including those in `done`.

    Raises:
        InputError: the acquisition function is unknown, or the pool is too small.
    """
    context = context or TrainContext()
    chosen = acquisitions(
        defense,
        net,
        pool,
        acquisition,
        rounds=rounds,
        batch=batch,
        per_class=per_class,
        draws=draws,
        context=context,
        labelled=done[-1].labelled if done else (),
    )
    found = list(done)
    x, y = test.to(context.resources.device).batch(slice(None))
    for labelled, clf in chosen:
        evaluated = evaluate(clf, x, y, draws, seed=context.seed)
        found.append(Round(labelled, evaluated.accuracy, evaluated.interval))
        report(found[-1])
    return found


def acquisitions(
    defense: Defense,
    net: Callable[[int], nn.Module],
    pool: Data,
    acquisition: str,
    *,
    rounds: int,
    batch: int,
    per_class: int,
    draws: int,
    context: TrainContext,
    labelled: tuple[int, ...] = (),
) -> Iterator[tuple[tuple[int, ...], Classifier]]:
    """The rounds of `active_learning`: positions of the labelled images, and the classifier trained on them.

    Args:
        defense: as in `active_learning`.
        net: as in `active_learning`.
        pool: as in `active_learning`.
        acquisition: as in `active_learning`.
        rounds: as in `active_learning`.
        batch: as in `active_learning`.
        per_class: as in `active_learning`.
        draws: as in `active_learning`.
        context: as in `active_learning`.
        labelled: positions of the images labelled in finished rounds, after which to resume.

    Raises:
        InputError: the acquisition function is unknown, or the pool is too small.
    """
    if acquisition not in ACQUISITIONS:
        raise unknown_name("acquisition function", acquisition, ACQUISITIONS)
    first = per_class * pool.classes
    needed = first + (rounds - 1) * batch
    fewest = int(torch.bincount(pool.labels, minlength=pool.classes).min())
    if fewest < per_class or len(pool) < needed:
        expected = f"at least {per_class} images of each class, and {needed} in all"
        raise InputError("pool", expected=expected, got=f"{fewest} and {len(pool)}")
    clf = None
    while len(labelled) < needed:
        if labelled:
            if clf is None and acquisition != "random":  # classifier of the last finished round
                clf = _trained(defense, net, pool, labelled, context)
            labelled += _chosen(clf, pool, labelled, ACQUISITIONS[acquisition], batch, draws, context)
        else:
            labelled = _first(pool, per_class, context.seed)
        clf = _trained(defense, net, pool, labelled, context)
        yield labelled, clf


def _first(pool: Data, per_class: int, seed: int) -> tuple[int, ...]:
    """Random images, the same number of each class."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(derive(seed, "active", "first")))
    members = [order[pool.labels[order] == label][:per_class] for label in range(pool.classes)]
    return tuple(torch.cat(members).tolist())


def _trained(
    defense: Defense,
    net: Callable[[int], nn.Module],
    pool: Data,
    labelled: tuple[int, ...],
    context: TrainContext,
) -> Classifier:
    """Train the classifier of a round from new weights."""
    seed = derive(context.seed, "active", len(labelled))
    own = dataclasses.replace(context, seed=seed, checkpoint=None, init=None, fresh=net, watch=None)
    rows = torch.tensor(labelled)
    data = Data(pool.images[rows], pool.labels[rows], pool.classes, pool.name)
    return defense.fit(net(derive(seed, "init")), data, own)


def _chosen(
    clf: Classifier | None,
    pool: Data,
    labelled: tuple[int, ...],
    measure: str,
    batch: int,
    draws: int,
    context: TrainContext,
) -> tuple[int, ...]:
    """Positions of the images to label next: those of largest measure, with ties broken at random."""
    known = np.zeros(len(pool), bool)
    known[list(labelled)] = True
    rest = np.flatnonzero(~known)
    order = np.random.default_rng(derive(context.seed, "active", "order", len(labelled))).permutation(len(rest))
    if measure:
        assert clf is not None, "all but random selection needs a classifier"
        left = Data(pool.images[rest], pool.labels[rest], pool.classes, pool.name).to(context.resources.device)
        seed = derive(context.seed, "active", "acquire", len(labelled))
        scores = score(evaluate(clf, *left.batch(slice(None)), draws, seed=seed), measure)
        order = order[np.argsort(-scores[order], kind="stable")]
    return tuple(rest[order[:batch]].tolist())


class CurvePoint(NamedTuple):
    """Mean accuracy over seeds at a number of labelled images, with its 95 % interval (Student's t), as fractions."""

    labelled: int
    accuracy: float
    interval: Interval


def learning_curve(runs: Sequence[Sequence[Round]]) -> list[CurvePoint]:
    """Learning curve as in APD Figure 4: mean over runs with different seeds, or a single run with its own intervals.

    Args:
        runs: results of `active_learning` for each seed, with the same number of rounds.
    """
    points = []
    for each in zip(*runs, strict=True):
        values = np.array([one.accuracy for one in each])
        interval = each[0].interval
        if len(each) > 1:
            half = float(student_quantile(len(each) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(each))
            interval = Interval(max(0.0, values.mean() - half), min(1.0, values.mean() + half))
        points.append(CurvePoint(len(each[0].labelled), float(values.mean()), interval))
    return points
