"""Gradient checks: zeros, direction, and agreement with finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks.ball import random_start, steepest
from advbench.audit.findings import Finding
from advbench.audit.subject import Slopes, Subject, ignores_images, too_few
from advbench.errors import NoGradientError, PluginError

UPHILL = 0.9  # required fraction of points at which a step increases the margin; 1 for correct gradients
AGREE = 0.85  # required fraction of directions with the gradient's sign; at least 0.94 if correct
ROUNDING = 32  # smallest detectable change, in units in the last place of the largest logit
VANISHED = 0.01
MEANS = "Accuracy under gradient attacks is a possibly loose upper bound for this defense."
NEXT = "run attacks without gradients (square, transfer), or a differentiable stand-in (--surrogate)"


def check_gradients(subject: Subject) -> list[Finding]:
    """Check zeros, steps uphill and finite differences at the images and at random points of the ball."""
    clf, half = subject.clf, min(subject.sizes.places, len(subject.x))
    x, y = subject.x[:half], subject.y[:half]
    places = torch.cat([x, random_start(x, subject.threat, subject.generator("places"))])
    labels = torch.cat([y, y])
    if ignores_images(clf, x, subject.draws(1, "slope")[0]):
        reason = "the output of the classifier does not depend on the image"
        return [Finding.skipped(f"gradient: {name}", reason) for name in ("zeros", "uphill", "finite differences")]
    before, slopes = clf.passes.forward, Slopes(subject)
    try:
        gradient = slopes.gradient(places, labels)
    except NoGradientError:
        return [_none(subject)]
    except PluginError as error:
        return [Finding("gradient: zeros", "failed", f"The gradient could not be computed: {error}.", MEANS, NEXT)]
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
        "The classifier has no gradient with respect to the images.",
        "Gradient attacks fail or find nothing; only attacks without gradients are informative.",
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
        f"The gradient of the margin is exactly zero at {zero} of {len(largest)} points.{said}"
        if bad
        else f"The gradient of the margin is not zero at {len(largest) - zero} of {len(largest)} points.",
        MEANS,
        NEXT,
    )


@torch.no_grad()
def _resolution(subject: Subject, places: Tensor) -> float:
    """Smallest change of a margin that is not rounding error."""
    logits = subject.clf.at(subject.draws(1, "slope")[0], places)
    return ROUNDING * torch.finfo(logits.dtype).eps * float(logits.abs().max())


def _uphill(
    subject: Subject, slopes: Slopes, places: Tensor, labels: Tensor, gradient: Tensor, visible: float
) -> Finding:
    """Check steps of several lengths along the gradient, clipped to the box."""
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
        f"A step along the gradient increases the margin at {', '.join(texts)}.",
        f"The gradient does not point uphill. {MEANS}",
        NEXT,
        p=min(1.0, len(subject.sizes.steps) * worst),
    )


def _differences(
    subject: Subject, slopes: Slopes, places: Tensor, labels: Tensor, gradient: Tensor, visible: float
) -> Finding:
    """Compare central differences along random directions with the directional derivative."""
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
        f"Along random directions, the change of the margin has the gradient's sign in {', '.join(texts)}.",
        f"The gradient is not that of the evaluated function. {MEANS}",
        NEXT,
        p=min(1.0, len(subject.sizes.probes) * worst),
    )
