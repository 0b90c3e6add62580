"""Pool-based active learning: a classifier chooses the images that are labelled next."""

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

# Acquisition functions, and the measure of uncertainty whose largest values each picks.
ACQUISITIONS = {
    "random": "",
    "entropy": "total",  # APD section 5.3
    "bald": "epistemic",  # APD eq. 9
    "variation_ratio": "variation_ratio",  # APD eq. 10
    "model_variance": "model_variance",  # APD eq. 11
    "least_confidence": "least_confidence",
}


class Round(NamedTuple):
    """One training on the images that were labelled by then.

    Attributes:
        labelled: positions in the pool of the images that it was trained on, in the order in which they were chosen.
        accuracy: on the test images, as a fraction.
        interval: 95 % interval of that, for other images and draws.
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
    """Train on a few labelled images, let the classifier choose more of the pool, and train anew; as often as wished.

    Gal et al. 2017 and APD section 5.3 (Figure 4), whose numbers are the defaults: 2 images of each class, then 10 more
    a round, of largest entropy. Each round trains a new net (APD's released code: 3,000 steps on all labelled images,
    so `stages=(3000,)` with a `batch_size` of at least their number). Departure: the released code trains APD's GAN on
    from round to round; here the method begins anew, as all others do.

    Everything follows from the context's seed and the images chosen so far, so that a study which was interrupted goes
    on from the rounds that it kept, and ends as if it had not been.

    Args:
        defense: the training method.
        net: makes an untrained net from a seed, as `lambda seed: advbench.build_architecture("apd_cnn", pool, seed)`.
        pool: the images that may be chosen, with the labels that an annotator would give them.
        test: images for the accuracy.
        acquisition: one of `ACQUISITIONS`.
        rounds: number of trainings, the first on the images chosen at random.
        batch: images chosen in a round.
        per_class: images of each class in the first.
        draws: draws of a random classifier, to choose and to evaluate; APD's released code: 50.
        context: seed, device and precision of all trainings.
        done: rounds to go on from.
        report: called after each round.

    Returns:
        All rounds, those in `done` included.

    Raises:
        InputError: an unknown acquisition function, or a pool too small.
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
        judged = evaluate(clf, x, y, draws, seed=context.seed)
        found.append(Round(labelled, judged.accuracy, judged.interval))
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
    """The rounds of `active_learning`: the positions of the labelled images, and the classifier trained on them.

    Args:
        defense: as there, like all others but the last.
        net: likewise.
        pool: likewise.
        acquisition: likewise.
        rounds: likewise.
        batch: likewise.
        per_class: likewise.
        draws: likewise.
        context: likewise.
        labelled: positions of those that are labelled after the rounds that are done; the rounds after these follow.

    Raises:
        InputError: an unknown acquisition function, or a pool too small.
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
            if clf is None and acquisition != "random":  # that of the last round that is done
                clf = _trained(defense, net, pool, labelled, context)
            labelled += _chosen(clf, pool, labelled, ACQUISITIONS[acquisition], batch, draws, context)
        else:
            labelled = _first(pool, per_class, context.seed)
        clf = _trained(defense, net, pool, labelled, context)
        yield labelled, clf


def _first(pool: Data, per_class: int, seed: int) -> tuple[int, ...]:
    """As many images of each class, at random."""
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
    """The classifier of a round, trained from new weights."""
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
    """Positions of the images to label next: of largest measure, and at random of those that are equal."""
    known = np.zeros(len(pool), bool)
    known[list(labelled)] = True
    rest = np.flatnonzero(~known)
    order = np.random.default_rng(derive(context.seed, "active", "order", len(labelled))).permutation(len(rest))
    if measure:
        assert clf is not None, "all but chance choose by a classifier"
        left = Data(pool.images[rest], pool.labels[rest], pool.classes, pool.name).to(context.resources.device)
        seed = derive(context.seed, "active", "acquire", len(labelled))
        scores = score(evaluate(clf, *left.batch(slice(None)), draws, seed=seed), measure)
        order = order[np.argsort(-scores[order], kind="stable")]
    return tuple(rest[order[:batch]].tolist())


class CurvePoint(NamedTuple):
    """Mean accuracy over seeds at a number of labelled images, with its 95 % interval (Student's), as fractions."""

    labelled: int
    accuracy: float
    interval: Interval


def learning_curve(runs: Sequence[Sequence[Round]]) -> list[CurvePoint]:
    """The curve of APD Figure 4: the mean over runs of different seeds; of a single run its own intervals.

    Args:
        runs: what `active_learning` gave for each seed, of equally many rounds.
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
