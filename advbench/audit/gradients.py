"""Whether the gradient leads where it should: attacks that follow one that does not find nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks.ball import random_start, steepest
from advbench.audit.findings import Finding
from advbench.audit.subject import Slopes, Subject, ignores_images, too_few
from advbench.errors import NoGradientError, PluginError

UPHILL = 0.9  # share of places at which a step must rise; of sound classifiers it does at all of them
AGREE = 0.85  # share of random directions whose slope must have the gradient's sign; of sound classifiers 0.94 and more
ROUNDING = 32  # units in the last place of the largest logit, below which nothing is to be seen
VANISHED = 0.01
MEANS = "What gradient attacks say of this defense is an upper bound of unknown worth."
NEXT = "run attacks without gradients (square, transfer), or a differentiable stand-in (--surrogate)"


def check_gradients(subject: Subject) -> list[Finding]:
    """Zeros, steps uphill, finite differences, at the images and at random points of the ball."""
    clf, half = subject.clf, min(subject.sizes.places, len(subject.x))
    x, y = subject.x[:half], subject.y[:half]
    places = torch.cat([x, random_start(x, subject.threat, subject.generator("places"))])
    labels = torch.cat([y, y])
    if ignores_images(clf, x, subject.draws(1, "slope")[0]):
        reason = "the classifier answers without looking at the image"
        return [Finding.skipped(f"gradient: {name}", reason) for name in ("zeros", "uphill", "finite differences")]
    before, slopes = clf.passes.forward, Slopes(subject)
    try:
        gradient = slopes.gradient(places, labels)
    except NoGradientError:
        return [_none(subject)]
    except PluginError as error:
        return [Finding("gradient: zeros", "failed", f"No gradient could be had: {error}.", MEANS, NEXT)]
    found = [_zeros(gradient)]
    zeros_cost = (clf.passes.forward - before) / len(subject.x)
    visible = _resolution(subject, places)
    found.append(_uphill(subject, slopes, places, labels, gradient, visible))
    found.append(_differences(subject, slopes, places, labels, gradient, visible))
    cost = (clf.passes.forward - before) / len(subject.x) - zeros_cost
    shares = (zeros_cost, 0.5 * cost, 0.5 * cost)
    return [Finding(**{**each.to_json(), "passes": share}) for each, share in zip(found, shares, strict=True)]


def _none(subject: Subject) -> Finding:
    return Finding(
        "gradient: zeros",
        "failed",
        "The classifier lets no gradient through to the images.",
        "Gradient attacks cannot be run at all, or find nothing; only attacks without gradients say anything.",
        NEXT,
        passes=0.0,
    )


def _zeros(gradient: Tensor) -> Finding:
    largest = gradient.flatten(1).abs().amax(1)
    zero, finite = int((largest == 0).sum()), bool(largest.isfinite().all())
    bad = zero > VANISHED * len(largest) or not finite
    said = "" if finite else " Some are not finite."
    return Finding(
        "gradient: zeros",
        "failed" if bad else "ok",
        f"The margin's gradient is exactly zero at {zero} of {len(largest)} places.{said}",
        MEANS,
        NEXT,
    )


@torch.no_grad()
def _resolution(subject: Subject, places: Tensor) -> float:
    """The smallest change of a margin that rounding cannot make."""
    logits = subject.clf.at(subject.draws(1, "slope")[0], places)
    return ROUNDING * torch.finfo(logits.dtype).eps * float(logits.abs().max())


def _uphill(
    subject: Subject, slopes: Slopes, places: Tensor, labels: Tensor, gradient: Tensor, visible: float
) -> Finding:
    """Steps of several lengths along the gradient, each clipped to the box."""
    start, direction = slopes.margins(places, labels), steepest(gradient, subject.threat)
    worst, texts = 1.0, []
    for length in subject.sizes.steps:
        there = (places + length * subject.threat.eps * direction).clamp(0, 1)
        predicted = ((there - places) * gradient).flatten(1).sum(1)
        rise = slopes.margins(there, labels) - start
        asked = predicted > visible
        risen = int((asked & (rise > 0)).sum())
        of = int(asked.sum())
        worst = min(worst, too_few(risen, of, UPHILL))
        texts.append(f"{risen} of {of} at {length:g} eps")
    return Finding(
        "gradient: uphill",
        "ok",
        f"A step along the gradient raises the margin at {', '.join(texts)}.",
        f"The gradient does not lead uphill. {MEANS}",
        NEXT,
        p=min(1.0, len(subject.sizes.steps) * worst),
    )


def _differences(
    subject: Subject, slopes: Slopes, places: Tensor, labels: Tensor, gradient: Tensor, visible: float
) -> Finding:
    """Central differences along random directions against the directional derivative."""
    generator = subject.generator("directions")
    worst, texts = 1.0, []
    for length in subject.sizes.probes:
        drawn = torch.empty_like(places).normal_(generator=generator)
        change = steepest(drawn, subject.threat) * (length * subject.threat.eps)
        above, below = (places + change).clamp(0, 1), (places - change).clamp(0, 1)
        predicted = ((above - below).double() * gradient.double()).flatten(1).sum(1)
        seen = slopes.margins(above, labels) - slopes.margins(below, labels)
        asked = (predicted.abs() > visible) | (seen.abs() > visible)
        agreeing, of = int((asked & (predicted * seen > 0)).sum()), int(asked.sum())
        worst = min(worst, too_few(agreeing, of, AGREE))
        texts.append(f"{agreeing} of {of} at {length:g} eps")
    return Finding(
        "gradient: finite differences",
        "ok",
        f"Along random directions the margin changes with the gradient's sign in {', '.join(texts)}.",
        f"The gradient is not that of what is evaluated. {MEANS}",
        NEXT,
        p=min(1.0, len(subject.sizes.probes) * worst),
    )
