"""Gradient checks: zeros, direction, and agreement with finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from advbench.attacks.ball import random_start, steepest
from advbench.audit.findings import Finding
from advbench.audit.subject import Slopes, Subject, ignores_images, resolution, too_few
from advbench.errors import NoGradientError, PluginError

UPHILL = 0.9  # required fraction of points at which a step increases the margin; 1 for correct gradients
NEAR = 0.5  # largest difference between a change and its prediction, as a fraction of the larger of the two
AGREE = {0.005: 0.9, 0.1: 0.7}  # required fraction of near changes by probe length; correct: 0.95 and 0.79 or more
VANISHED = 0.01
MEANS = "Accuracy under gradient attacks is a possibly loose upper bound for this defense."
NEXT = "run attacks without gradients (square, transfer), or a differentiable stand-in (--surrogate)"


def check_gradients(subject: Subject, attacked: Tensor | None = None) -> list[Finding]:
    """Check zeros, steps uphill, and finite differences.

    Args:
        subject: the audited classifier and images.
        attacked: examples of a gradient attack; steps uphill are then also checked on the way to them.
    """
    clf, half = subject.clf, min(subject.sizes.places, len(subject.x))
    x, y, generator = subject.x[:half], subject.y[:half], subject.generator("places")
    inside = random_start(x, subject.threat, generator)
    groups = {"the images": x, "random points": inside}
    if attacked is not None:
        groups["the attack's path"] = x.lerp(attacked[:half], 0.5)
    places, labels = torch.cat(list(groups.values())), y.repeat(len(groups))
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
    visible, found, costs = _visible(subject, places), [_zeros(gradient)], [clf.passes.forward - before]
    # At the images themselves functions such as a median have kinks, whose central differences are not a gradient.
    points = torch.cat([inside, random_start(x, subject.threat, generator)])
    for check in (
        partial(_uphill, subject, slopes, places, labels, gradient, visible, list(groups)),
        partial(_differences, subject, points, y.repeat(2), visible),
    ):
        before = clf.passes.forward
        found.append(check())
        costs.append(clf.passes.forward - before)
    return [replace(each, passes=cost / len(subject.x)) for each, cost in zip(found, costs, strict=True)]


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
def _visible(subject: Subject, places: Tensor) -> float:
    logits = subject.clf.at(subject.draws(1, "slope")[0], places)
    return resolution(subject.clf, logits)


def _uphill(
    subject: Subject,
    slopes: Slopes,
    places: Tensor,
    labels: Tensor,
    gradient: Tensor,
    visible: float,
    groups: Sequence[str],
) -> Finding:
    """Check steps of several lengths along the gradient, clipped to the box, for each group of places by itself."""
    start, direction = slopes.margins(places, labels), steepest(gradient, subject.threat)
    ps, texts = [], dict.fromkeys(groups, "")
    for length in subject.sizes.steps:
        there = (places + length * subject.threat.eps * direction).clamp(0, 1)
        predicted = ((there - places) * gradient).flatten(1).sum(1)
        rise = slopes.margins(there, labels) - start
        asked = predicted > visible
        parts = zip(groups, (asked & (rise > 0)).chunk(len(groups)), asked.chunk(len(groups)), strict=True)
        for name, risen, of in parts:
            ps.append(too_few(int(risen.sum()), int(of.sum()), UPHILL))
            texts[name] += f", {int(risen.sum())} of {int(of.sum())} at {length:g} eps"
    where = "; ".join(f"at {name} for {text[2:]}" for name, text in texts.items())
    return Finding(
        "gradient: uphill",
        "ok",
        f"A step along the gradient increases the margin {where}.",
        f"The gradient does not point uphill. {MEANS}",
        NEXT,
        p=min(1.0, len(ps) * min(ps)),
    )


def _differences(subject: Subject, places: Tensor, labels: Tensor, visible: float) -> Finding:
    """Compare central differences along random directions with the directional derivative, each point at one draw.

    The differences must agree in size and not in sign alone: the gradient of a part of the function, as of logits
    whose added noise depends on the image, keeps the sign at most points.
    """
    generator, slopes = subject.generator("directions"), Slopes(subject, apart=True)
    gradient = slopes.gradient(places, labels)
    worst, texts = 1.0, []
    for length, share in AGREE.items():
        drawn = torch.empty_like(places).normal_(generator=generator)
        change = steepest(drawn, subject.threat) * (length * subject.threat.eps)
        above, below = (places + change).clamp(0, 1), (places - change).clamp(0, 1)
        predicted = ((above - below).double() * gradient.double()).flatten(1).sum(1)
        seen = slopes.margins(above, labels) - slopes.margins(below, labels)
        larger = torch.maximum(predicted.abs(), seen.abs())
        asked = larger > visible
        agreeing, of = int((asked & ((seen - predicted).abs() <= NEAR * larger)).sum()), int(asked.sum())
        worst = min(worst, too_few(agreeing, of, share))
        texts.append(f"{agreeing} of {of} at {length:g} eps")
    return Finding(
        "gradient: finite differences",
        "ok",
        f"Along random directions, the margin changes as its gradient says in {', '.join(texts)}.",
        f"The gradient is not that of the evaluated function. {MEANS}",
        NEXT,
        p=min(1.0, len(AGREE) * worst),
    )
