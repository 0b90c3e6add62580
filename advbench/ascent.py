"""Projected gradient ascent inside a ball: the engine of gradient attacks and of adversarial training."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.api import Threat
from advbench.classifier import Classifier, ExampleLoss

LossName = Literal["ce", "margin", "dlr"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each image, `(batch,)`, in nats."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's, `(batch,)`: positive where the image is misclassified.

    Carlini and Wagner 2017, f6 with the sign turned.
    """
    label = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - label


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio of each image, `(batch,)` (Croce and Hein 2020, eq. 6).

    The margin divided by the distance of the largest logit to the third: invariant to shift and scale of the
    logits. Of two classes the ratio would be constant, so it is the margin itself.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, 2]
    return margin(logits, y) / spread.clamp_min(1e-12)


LOSSES: dict[LossName, ExampleLoss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """`values` `(batch,)`, shaped to broadcast over `images` `(batch, ...)`."""
    return values.view(-1, *[1] * (images.ndim - 1))


def lengths(delta: Tensor) -> Tensor:
    """Euclidean length of each image's change, `(batch, 1, 1, 1)`; summed in float64, for large images."""
    return per_image(delta.flatten(1).norm(dim=1, dtype=torch.float64).to(delta.dtype), delta)


def project(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """The point of the ball around `x` nearest to `x_adv`, then clipped to the box [0, 1].

    Clipping moves each pixel towards `x`, which is in the box, and so never leaves the ball.
    """
    if threat.norm == "linf":
        return x_adv.clamp(x - threat.eps, x + threat.eps).clamp_(0, 1)
    delta = x_adv - x
    scale = threat.eps / lengths(delta).clamp_min(torch.finfo(x.dtype).tiny)
    inside = 1 - 4 * torch.finfo(x.dtype).eps  # what rounding may add on the way back to the images
    return (x + delta * torch.where(scale < 1, scale * inside, 1.0)).clamp_(0, 1)


def steepest(gradient: Tensor, threat: Threat) -> Tensor:
    """The direction of norm 1 (in the threat's norm) along which a linear loss rises fastest; 0 stays 0."""
    if threat.norm == "linf":
        return gradient.sign()
    # Scaled first, so that the square of a tiny gradient does not underflow.
    largest = per_image(gradient.abs().flatten(1).amax(1), gradient)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / lengths(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def step_length(threat: Threat, steps: int, fraction: float | None) -> float:
    """Length of a step: `fraction` of eps, by default 2.5 / steps in linf (Madry 2018) and 10 / steps in l2.

    In l2 a path of 2.5 eps does not work off the sideways part of a random start, whatever the number of
    steps: on a linear model it ends 2 % short of the optimum. Longer steps reach it.
    """
    return threat.eps * (fraction or {"linf": 2.5, "l2": 10.0}[threat.norm] / steps)


def random_start(x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball around each image, clipped to the box."""
    if threat.norm == "linf":
        noise = torch.empty_like(x).uniform_(-threat.eps, threat.eps, generator=generator)
        return project(x + noise, x, threat)
    noise = torch.empty_like(x).normal_(generator=generator)
    uniform = x.new_empty(len(x)).uniform_(generator=generator)
    radius = threat.eps * per_image(uniform ** (1 / x[0].numel()), x)
    return project(x + noise * (radius / lengths(noise)), x, threat)


def ascend(
    clf: Classifier,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Tensor,
    loss: ExampleLoss = cross_entropy,
    samples: int = 1,
    keep_best: bool = False,
) -> Tensor:
    """Ascend the expected loss by steepest steps, projecting after each (Madry et al. 2018; Adv-BNN eq. 2, 3).

    Each step draws fresh weights, which solves the expectation over a random classifier by stochastic
    ascent; `samples` draws a step lower the variance (Athalye et al. 2018).

    Args:
        clf: the classifier under attack.
        x: images `(batch, channels, height, width)` in [0, 1].
        y: labels `(batch,)`.
        threat: norm and eps.
        steps: gradient steps.
        step_size: length of a step in the threat's norm, in pixels in [0, 1].
        start: where to start, within the ball and the box.
        loss: maps logits and labels to one loss an image.
        samples: draws per gradient.
        keep_best: return each image's iterate of largest margin instead of the last (costs one more
            forward pass). Only for deterministic classifiers: on a random one the largest of many noisy
            margins says little of the iterate.

    Returns:
        Images shaped as `x`, within the ball and the box.
    """
    x_adv = start
    best, best_margin = start, x.new_full((len(x),), -torch.inf)
    for _ in range(steps):
        gradient, logits = clf.input_gradient(x_adv, y, loss, samples)
        if keep_best:
            best, best_margin = _better(best, best_margin, x_adv, margin(logits.mean(0), y))
        x_adv = project(x_adv + step_size * steepest(gradient, threat), x, threat)
    if keep_best:
        with torch.no_grad():
            x_adv, _ = _better(best, best_margin, x_adv, margin(clf(x_adv), y))
    return x_adv


def _better(best: Tensor, best_margin: Tensor, candidate: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Per image the one of larger margin; of equals the later, which has ascended further."""
    improved = value >= best_margin
    return (
        torch.where(per_image(improved, candidate), candidate, best),
        torch.where(improved, value, best_margin),
    )
