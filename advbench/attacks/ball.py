"""The ball around an image: projection, distances, steepest directions, random points."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks.base import Threat

ROUNDING = 1e-5  # error of a pixel, and relative error of a length, that a library makes in float32


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
    inside = 1 - 4 * torch.finfo(x.dtype).eps  # what rounding the scale may add
    delta = delta * torch.where(scale < 1, scale * inside, 1.0)
    moved = x + delta
    # Rounded towards the image: up and down at will adds up to more than the tolerance over many alike pixels.
    longer = (moved - x).abs() > delta.abs()
    return torch.where(longer, torch.nextafter(moved, x), moved).clamp_(0, 1)


def distances(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Distance of each image from its original in the threat's norm, `(count,)`, float64."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)


def within(x_adv: Tensor, x: Tensor, threat: Threat, *, outward: bool = False) -> Tensor:
    """Examples moved into the threat's ball around `x`: how those of a minimal-norm attack serve every eps.

    What lies outside goes to the ball's nearest point. What lies inside stays: it fools a deterministic classifier.

    Args:
        x_adv: examples.
        x: the images.
        threat: norm and eps.
        outward: move what lies inside on, in its direction, to the ball's surface (and into the box). On a random
            classifier the nearest example lies where it is wrong as often as right, and a wider ball allows more.
    """
    distance = distances(x_adv, x, threat)
    if outward:
        stretch = per_image((threat.eps / distance.clamp_min(1e-12)).clamp_min(1.0).to(x.dtype), x)
        return project(x + (x_adv - x) * stretch, x, threat)
    return torch.where(per_image(distance <= threat.eps, x), x_adv, project(x_adv, x, threat))


def snapped_to_box(x_adv: Tensor) -> Tensor:
    """Examples of another library, of which pixels outside [0, 1] by float32 rounding alone are put onto its face."""
    clipped = x_adv.clamp(0, 1)
    return torch.where((x_adv - clipped).abs() <= ROUNDING, clipped, x_adv)


def snapped(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Examples of another library, of which those outside the ball by float32 rounding alone are projected onto it.

    Such libraries sum in float32, which on large images goes wrong by more than the harness lets pass.
    """
    x_adv = snapped_to_box(x_adv)
    excess = distances(x_adv, x, threat) / max(threat.eps, torch.finfo(x.dtype).tiny) - 1
    rounding = (excess > 0) & (excess <= ROUNDING)
    return torch.where(per_image(rounding, x), project(x_adv, x, threat), x_adv)


def steepest(gradient: Tensor, threat: Threat) -> Tensor:
    """The direction of norm 1 (in the threat's norm) along which a linear loss rises fastest; 0 stays 0."""
    if threat.norm == "linf":
        return gradient.sign()
    # Scaled first, so that the square of a tiny gradient does not underflow.
    largest = per_image(gradient.abs().flatten(1).amax(1), gradient)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / lengths(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def random_start(x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball around each image, clipped to the box."""
    if threat.norm == "linf":
        noise = torch.empty_like(x).uniform_(-threat.eps, threat.eps, generator=generator)
        return project(x + noise, x, threat)
    noise = torch.empty_like(x).normal_(generator=generator)
    uniform = x.new_empty(len(x)).uniform_(generator=generator)
    radius = threat.eps * per_image(uniform ** (1 / x[0].numel()), x)
    return project(x + noise * (radius / lengths(noise)), x, threat)
