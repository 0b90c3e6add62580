"""Blind searches without gradients, which a gradient attack should outperform."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench.attacks.ball import per_image, project, random_start, steepest
from advbench.attacks.base import Threat
from advbench.audit.findings import Finding
from advbench.audit.subject import Slopes, Subject, Tried, ascent, stronger

POINTS = 40  # random points around each image
BLIND_DRAWS = 2  # draws that select among them
FAR_STEPS, FAR_IMAGES = 10, 64
MISSED = "Gradient attacks miss examples that blind search finds: their accuracies are upper bounds."
NEXT = "run attacks without gradients (square, transfer) and report the lowest accuracy"


def sample(subject: Subject) -> Tried:
    """The best of many random points of the ball, half of them on its surface, selected with separate draws."""
    x, y, threat = subject.x, subject.y, subject.threat
    generator, slopes = subject.generator("search"), Slopes(subject, draws=BLIND_DRAWS)
    best, margins = x, slopes.margins(x, y)
    for k in range(POINTS):
        point = random_start(x, threat, generator)
        if k % 2:
            point = project(x + threat.eps * steepest(point - x, threat), x, threat)
        found = slopes.margins(point, y)
        best = torch.where(per_image(found > margins, x), point, best)
        margins = torch.maximum(found, margins)
    right = subject.right(best, y)
    subject.note("random points", right)
    return Tried(best, right)


def check_search(subject: Subject, gradient: Tried) -> Finding:
    """Compare random points of the ball with the gradient attack."""
    before = subject.clf.passes.forward
    blind = sample(subject)
    one, other = float(gradient.right.mean()), float(blind.right.mean())
    return Finding(
        "search: random points",
        "ok",
        f"The best of {POINTS} random points of the ball leaves an accuracy of {other:.3f}, the gradient attack "
        f"{one:.3f}.",
        MISSED,
        NEXT,
        passes=(subject.clf.passes.forward - before) / len(subject.x),
        p=stronger(gradient.right, blind.right),
        counts=subject.matters(one - other),
    )


def check_far(subject: Subject) -> Finding:
    """Check that an attack without an effective bound is at least as strong as a constant image."""
    x, y, before = subject.x[:FAR_IMAGES], subject.y[:FAR_IMAGES], subject.clf.passes.forward
    radius = 1.0 if subject.threat.norm == "linf" else math.sqrt(x[0].numel())
    how = {"samples": 3} if subject.clf.stochastic else {}
    attack = ascent(subject.clf, steps=FAR_STEPS, loss="margin", **how)
    far = Threat(subject.threat.norm, radius)
    found = subject.tried(f"at {far.norm} {radius:.3g}", attack, threat=far, rows=len(x))
    constants: list[Tensor] = [torch.full_like(x, level) for level in (0.0, 0.5, 1.0)]
    rights = [subject.right(images, y) for images in constants]
    p = min(1.0, len(rights) * min(stronger(found.right, right) for right in rights))
    one, other = float(found.right.mean()), min(float(right.mean()) for right in rights)
    return Finding(
        "search: radius at chance",
        "ok",
        f"At {far.norm} {radius:.3g}, where any image can become any other, the gradient attack leaves {one:.3f}; a "
        f"constant grey image leaves {other:.3f}.",
        f"Even without a bound, the gradient attack does not reach chance. {MISSED}",
        NEXT,
        passes=(subject.clf.passes.forward - before) / len(subject.x),
        p=p,
        counts=subject.matters(one - other),
    )
